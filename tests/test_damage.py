"""Folders that are damaged or unusable: each command says so in one line."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from processes import open_run

from experiments import continual, fewshot, online, plots, reproduce, runs
from experiments.tables.continual import cell_config
from experiments.tables.flags import Flags
from jaxsparse.training import RunFolder

COMMANDS = {"fewshot": fewshot, "continual": continual, "online": online}


def one_line(capsys, main, args):
    """The line with which `main` ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1, (stopped.value.code, lines)
    assert lines[0].startswith("error: ")
    return lines[0]


def record_of(name):
    config = dataclasses.asdict(COMMANDS[name].Config())
    return {"experiment": name, "config": config}


@pytest.fixture(params=COMMANDS)
def name(request):
    return request.param


@pytest.fixture
def run(name, tmp_path):
    """The folder of a run of each kind, with the row before training."""
    folder = RunFolder.create(tmp_path / "run", record_of(name), COMMANDS[name].UNIT)
    with folder.lock():
        folder.add_row({folder.unit: 0, "step": 0, "sparsity": {"total": 0.5}})
    return folder.path


CONFIGS = {
    "no configuration": (lambda record: record.pop("config"), "'config' must be a dict, got None"),
    "a list": (lambda record: record.update(config=[1]), "'config' must be a dict, got [1]"),
    "another experiment": (lambda record: record.update(experiment="other"), "'other'"),
    "no name": (lambda record: record.update(experiment=None), "None"),
    "unknown field": (lambda record: record["config"].update(waist=3), "unknown settings: waist"),
    "text": (lambda record: record["config"].update(seeds="five"), "seeds must be a whole number"),
    "a fraction": (lambda record: record["config"].update(width=2.5), "width must be a whole"),
    "true": (lambda record: record["config"].update(seeds=True), "seeds must be a whole number"),
    "null": (lambda record: record["config"].update(seed=None), "seed must be a whole number"),
    "a number": (lambda record: record["config"].update(method=3), "method must be a word, got 3"),
    "no rate": (lambda record: record["config"].update(inner_lr="x"), "inner_lr must be a number"),
    "a list for a place": (
        lambda record: record["config"].update(data_dir=[]), "data_dir must be a word or none"
    ),
    "huge": (lambda record: record["config"].update(inner_lr=10**400), "inner_lr must be finite"),
    "out of range": (lambda record: record["config"].update(seeds=0), "seeds must be 1 or more"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_wrong_configuration_is_named(name, run, damage, message, capsys):
    record = json.loads((run / "config.json").read_text())
    damage(record)
    (run / "config.json").write_text(json.dumps(record))
    before = {path: path.read_bytes() for path in run.iterdir()}
    line = one_line(capsys, COMMANDS[name].main, ["--resume", run])
    assert f"config.json is not a run of {name}: " in line and message in line
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_stored_without_its_experiments_name_resumes(name, run):
    record = json.loads((run / "config.json").read_text())
    del record["experiment"]
    (run / "config.json").write_text(json.dumps(record))
    opened = open_run(COMMANDS[name], [f"--resume={run}"])
    assert dataclasses.asdict(opened.config) == record["config"]


RESULTS = {
    "a list": ([], "want an object, got []"),
    "null": (None, "want an object, got null"),
    "text": ("done", 'want an object, got "done"'),
    "nothing": ({}, "no 'se"),
    "a number": ({"seeds": 3, "sparsity": 3}, "contents that no run writes"),
    "seeds without": ({"seeds": [{}], "sparsity": {}}, "no '"),
    "seeds of text": ({"seeds": ["a"], "sparsity": {"total": "b"}}, "contents that no run writes"),
}


@pytest.mark.parametrize(("result", "message"), RESULTS.values(), ids=RESULTS)
def test_a_wrong_result_is_named(name, run, result, message, capsys):
    (run / "result.json").write_text(json.dumps(result))
    line = one_line(capsys, COMMANDS[name].main, ["--resume", run])
    assert f"{run / 'result.json'} " in line and message in line, line


@pytest.mark.parametrize(("result", "message"), RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("table", ["3", "S5"])
def test_a_wrong_result_is_named_by_tables(result, message, table, tmp_path, capsys):
    config = cell_config(Flags(seeds=2), "rotations", "lamaml")
    record = {"experiment": "continual", "config": dataclasses.asdict(config)}
    folder = RunFolder.create(tmp_path / "rotations-lamaml", record, "task")
    (folder.path / "result.json").write_text(json.dumps(result))
    flags = ["--table", table, "--streams", "rotations", "--seeds", "2", "--no-run"]
    line = one_line(capsys, reproduce.main, [*flags, "--out", tmp_path])
    assert str(tmp_path) in line


def test_an_error_of_a_run_is_not_taken_for_a_damaged_result(tmp_path, monkeypatch):
    def fail(*unused):
        raise KeyError("a mistake in the program")

    monkeypatch.setattr(runs, "run", fail)
    flags = ["--table", "3", "--streams", "rotations", "--out", str(tmp_path / "out")]
    with pytest.raises(RuntimeError) as error:
        reproduce.main(flags)
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize("text", ["", "\0\0\0\n", '{"epoch": 0}\n', "[]\n", "\N{SNOWMAN}\n"])
def test_figures_of_damaged_rows_are_refused(run, text, capsys):
    (run / "metrics.jsonl").write_text(text, encoding="utf-16")
    assert f"{run}" in one_line(capsys, plots.main, [run])


def test_plots_refuses_missing_runs(tmp_path, capsys):
    for place in ("/nowhere", tmp_path, "n" * 300, "a\0b", "~nosuchuser/run", "/dev/null"):
        one_line(capsys, plots.main, [place])


def test_places_for_a_run_that_cannot_be_used_are_one_line(name, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    places = {
        tmp_path / "file": "is a file",
        tmp_path / "link": "is a broken link",
        tmp_path / "pipe": "want a folder",
        tmp_path / "full": "is not empty",
        "/dev/null": "want a folder",
        "n" * 300: "File name too long",
        "~nosuchuser/run": "--out: ~nosuchuser/run names no home folder",
    }
    for place, message in places.items():
        assert message in one_line(capsys, COMMANDS[name].main, [f"--out={place}"])
    for place in ("n" * 300, "/nowhere", tmp_path / "full", "~nosuchuser/run", "/dev/null"):
        one_line(capsys, COMMANDS[name].main, [f"--resume={place}"])


def test_a_tilde_is_the_home_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    own = COMMANDS[name]
    assert open_run(own, ["--out=~/run"]).path == tmp_path / "run"
    RunFolder.create(tmp_path / "run", record_of(name), own.UNIT)
    assert open_run(own, ["--resume=~/run"]).path == tmp_path / "run"
    assert not Path("~").exists()


def test_runs_started_in_the_same_second_have_separate_folders(name, tmp_path, monkeypatch):
    class Frozen(runs.datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2024, 5, 6, 7, 8, 9)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.datetime, "datetime", Frozen)
    opened = [open_run(COMMANDS[name], []) for _ in range(3)]
    names = [one.path.name for one in opened]
    assert names[0].endswith("-20240506-070809")
    assert names == [names[0], f"{names[0]}-2", f"{names[0]}-3"]
    scans = {continual.scan.sweep_path(one.path) for one in opened}
    assert len(scans) == 3 and not any(path.exists() for path in scans)
    for one in opened:  # the files of the first keep the others away
        RunFolder.create(one.path, {"config": dataclasses.asdict(one.config)})


def test_a_data_dir_of_an_unknown_user_is_one_line(name, tmp_path, capsys):
    data = {"fewshot": ["--dataset=omniglot"], "continual": [], "online": []}[name]
    for place in ("~nosuchuser", "n" * 300):
        flags = [*data, f"--data-dir={place}", f"--out={tmp_path / 'run'}"]
        assert place[:100] in one_line(capsys, COMMANDS[name].main, flags)
    assert not (tmp_path / "run").exists()
