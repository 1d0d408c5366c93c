"""`--scan`: a sweep over a grid, then the run; and how a table reads its points."""

import dataclasses
import json

import pytest
from problems import quick_programs
from processes import recorded_loads

pytest.importorskip("optuna")

from experiments import cli, continual
from experiments.continual.scan import Grid, sweep_path
from experiments.sweep import search
from experiments.tables.runner import Runner
from experiments.tables.saved import Saved
from jaxsparse.training import RunError

pytestmark = pytest.mark.usefixtures("quick_programs")
RUN = ["--data=glyphs", "--tasks=2", "--samples-per-task=40", "--width=8", "--seeds=2"]
GRID = ["--grid-inner-lr", "0.0", "0.1", "--grid-mask-lr", "1.7", "--grid-glances", "1", "2"]


def scan(out):
    continual.main([*RUN, "--scan", *GRID, f"--out={out}"])


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """The folder of a finished run with --scan, and for which data it was read."""
    out = tmp_path_factory.mktemp("scan") / "run"
    with recorded_loads(continual) as validation, quick_programs():
        scan(out)
    return out, validation


def test_a_scan_chooses_without_the_test_images(scanned):
    out, validation = scanned
    assert validation == [False, True, False]  # checked, swept, run once
    record = read(out / "config.json")
    assert not record["config"]["validation"] and record["config"]["seeds"] == 2
    points = record["sweep"]["points"]
    assert len(points) == 4
    best = max(points, key=lambda point: point["value"])
    assert best["inner_lr"] == 0.1  # a learner that does not move retains nothing
    for name in ("inner_lr", "mask_lr", "glances"):
        assert record["config"][name] == best[name]
    assert record["sweep"]["study"] == read(sweep_path(out) / "sweep.json")["study"]


def test_a_scan_is_a_program_for_each_number_of_glances(scanned):
    out, _ = scanned
    folders = sorted((sweep_path(out) / "trials").iterdir())
    records = [read(path / "config.json") for path in folders]
    assert [record["config"]["glances"] for record in records] == [1, 2]
    assert all(record["config"]["seeds"] == 2 for record in records)
    points = {(t["params"]["glances"], t["params"]["inner_lr"]): t["value"]
              for t in read(sweep_path(out) / "trials.json")["trials"]}  # fmt: skip
    for path, glances in zip(folders, (1, 2), strict=True):
        for point in read(path / "result.json")["points"]:
            assert points[glances, point["inner_lr"]] == point["retained_accuracy"]["mean"]


def test_a_finished_sweep_is_not_repeated(scanned, tmp_path, monkeypatch):
    out, _ = scanned
    # As if the run had been killed before it had a folder.
    sweep_path(out).rename(sweep_path(tmp_path / "run"))
    try:
        monkeypatch.setattr(search, "work", lambda sweep, slots, *unused: slots.take(1) and 1 / 0)
        scan(tmp_path / "run")
    finally:
        sweep_path(tmp_path / "run").rename(sweep_path(out))
    ours, theirs = read(tmp_path / "run/config.json"), read(out / "config.json")
    assert ours["config"] == theirs["config"] and ours["sweep"] == theirs["sweep"]


def test_another_grid_needs_another_folder(scanned, tmp_path, capsys):
    out, _ = scanned
    sweep_path(tmp_path / "run").symlink_to(sweep_path(out))
    with pytest.raises(SystemExit) as stop:
        continual.main([*RUN, "--scan", "--grid-glances", "1", f"--out={tmp_path / 'run'}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "run-sweep holds another sweep; choose another --out" in line
    assert not (tmp_path / "run").exists()


def test_a_scan_without_optuna_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(continual, "load_data", None)  # not reached
    with pytest.raises(SystemExit) as stop:
        scan(tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line == "error: --scan needs Optuna; install it with: pip install -e '.[sweep]'"
    with pytest.raises(SystemExit):
        Runner(tmp_path, True, "again").scan("run", continual.Config(), Grid(glances=(1, 2)))
    assert "error: a scan needs Optuna" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- in a table


def config_and_grid(out):
    config = continual.Config(**read(out / "config.json")["config"])
    usual = continual.preset_config("rotations", "sparse-lamaml")
    config = dataclasses.replace(config, inner_lr=usual.inner_lr, glances=usual.glances)
    return config, Grid(inner_lr=(0.0, 0.1), mask_lr=(1.7,), glances=(1, 2))


def test_a_table_reads_the_points_of_a_sweep_and_of_a_results_file(scanned, capsys):
    out, _ = scanned
    config, grid = config_and_grid(out)
    runner = Runner(out.parent, False, "again")
    chosen, points = runner.scan("run", config, grid)
    printed = capsys.readouterr().out
    values = {(t["params"]["glances"], t["params"]["inner_lr"]): t["value"]
              for t in read(sweep_path(out) / "trials.json")["trials"]}  # fmt: skip
    assert [(p["glances"], p["inner_lr"]) for p in points] == [
        (1, 0.0),
        (1, 0.1),
        (2, 0.0),
        (2, 0.1),
    ]
    for point in points:
        key = point["glances"], point["inner_lr"]
        assert point["retained_accuracy"]["mean"] == values[key]
    assert values[chosen.glances, chosen.inner_lr] == max(values.values())
    # What a results file keeps.
    assert sorted(runner.found) == ["run-scan-1-glances", "run-scan-2-glances"]
    kept = json.loads(json.dumps(runner.found))
    path = out.parent / "a.json"
    saved = Runner(path, False, "again", [Saved(path, {}, kept)])
    assert saved.scan("run", config, grid) == (chosen, points)
    assert capsys.readouterr().out == printed
    assert "data_dir" in kept["run-scan-1-glances"]["config"]
    assert str(out) not in json.dumps(kept) and "trials" not in kept["run-scan-1-glances"]


def test_a_table_refuses_the_sweep_of_other_settings(scanned):
    out, _ = scanned
    config, grid = config_and_grid(out)
    runner = Runner(out.parent, False, "again")
    with pytest.raises(RunError, match="run-sweep holds another sweep"):
        runner.scan("run", dataclasses.replace(config, tasks=3), grid)
    assert runner.scan("other", config, grid) is None
