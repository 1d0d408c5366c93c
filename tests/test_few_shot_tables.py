"""The paper's few-shot tables and figures: which runs they ask for, and how they print them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_reproduce import table_rows

from experiments import evaluate, reproduce, runs
from experiments.fewshot import presets
from experiments.tables import few_shot_figures, figures, paper_few_shot, saved, scales
from experiments.tables.flags import Flags
from experiments.tables.index import READS
from experiments.tables.runner import Runner

LAYERS = ("conv1/kernel", "head/kernel", "conv1/bias", "norm1/scale")
NAMES = [name for name, reads in READS.items() if "scale" in reads.flags]
ALL_RATES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
PAPER, CPU = Flags(scale="paper"), Flags(scale="cpu")


def made_up(config, accuracies=None, frozen=0.4):
    """The result of a run; FOMAML is best on validation tasks with the inner rate 0.2."""
    seeds = [
        {
            "seed": seed,
            "accuracy": accuracy,
            "ensemble_accuracy": accuracy + 0.02,
            "interval95": 0.01,
            "best_val_accuracy": 0.9 - abs(config.inner_lr - 0.2),
            "sparsity": {"total": frozen, **dict.fromkeys(LAYERS, frozen)},
        }
        for seed, accuracy in enumerate(accuracies or [0.5] * config.seeds)
    ]
    return {"test_tasks": 300, "seeds": seeds}


def rows(seeds=1):
    """Two rows of metrics."""
    values = [dict.fromkeys(LAYERS, [x] * seeds) for x in (0.5, 0.75)]
    return [{"epoch": i, "step": 100 * i, "sparsity": x} for i, x in enumerate(values)]


class Asked(Runner):
    """A runner that has every run, and remembers what it is asked for."""

    def __init__(self, out):
        super().__init__(out, False, "")
        self.runs, self.tests = {}, {}

    def result(self, family, name, config):
        assert self.runs.setdefault(name, config) == config  # one name, one configuration
        self.found[name] = {}
        return made_up(config)

    def rows(self, family, name, *entries):
        return rows()

    def evaluation(self, name, config, dataset, steps):
        self.tests[name, dataset] = steps
        return made_up(config)


@pytest.fixture
def drawn(monkeypatch):
    """The drawn figures: file name -> figure."""
    found = {}
    monkeypatch.setattr(figures, "save", lambda draw, _, name: found.update({name: draw()}))
    return found


def asked(name, flags, place=Path("runs")):
    """The runs that a table asks for: name -> configuration, and its tests on other data."""
    runner = Asked(place)
    READS[name].show(flags, runner)
    return runner.runs, runner.tests


def said(config, *names):
    return tuple(getattr(config, name) for name in names)


# ---- definitions


def test_table_1_has_the_settings_of_table_s2():
    runs, tests = asked("table 1", PAPER)
    for shots in (1, 5):
        mine = {name: c for name, c in runs.items() if name.startswith(f"paper-{shots}shot-")}
        choices = [f"fomaml-choice-alpha-{rate:g}" for rate in ALL_RATES]
        names = ["maml", "anil", "boil", "meta-sgd", "sparse-maml", "sparse-relu-maml"]
        names += ["sparse-maml-plus", "fomaml-alpha-0.2", *choices]
        assert set(mine) == {f"paper-{shots}shot-{name}" for name in names}
        for name, c in mine.items():
            assert c.seeds == (1 if "choice" in name else 5) and c.dataset == "mini_imagenet"
            assert (c.shots, c.val_tasks, c.test_tasks) == (shots, 300, 300)
        for method, alpha, gamma, optimiser, epochs in (
            ("sparse-maml", 0.25, 0.0075, "adam", 400),
            ("sparse-relu-maml", 0.25 if shots == 1 else 0.1, 0.0075, "adam", 400),
            ("sparse-maml-plus", 0.1, 0.015 if shots == 1 else 0.0075, "nesterov", 600),
            ("fomaml-alpha-0.2", 0.2, 0.0075, "adam", 400),
        ):
            c = mine[f"paper-{shots}shot-{method}"]
            assert said(c, "inner_lr", "mask_lr", "mask_optimizer") == (alpha, gamma, optimiser)
            assert said(c, "epochs", "steps_per_epoch", "width") == (epochs, 100, 64)
            assert said(c, "inner_steps", "test_inner_steps", "theta_lr") == (35, 100, 0.001)
            assert c.meta_batch_size == (4 if shots == 1 else 2)
    assert {dataset for _, dataset in tests} == {"tiered_imagenet", "cub", "cars"}
    assert tests["paper-1shot-sparse-maml", "cub"] == 35
    assert tests["paper-5shot-sparse-maml", "cub"] == 100
    assert tests["paper-1shot-maml", "cub"] == 10


def test_the_small_table_1_has_three_datasets():
    runs, tests = asked("table 1", CPU)
    glyphs = runs["cpu-glyphs-5shot-sparse-maml"]
    assert said(glyphs, "dataset", "width", "inner_steps", "seeds") == ("glyphs", 32, 5, 5)
    assert said(runs["cpu-mini-imagenet-1shot-boil"], "width", "seeds") == (32, 2)
    omniglot = runs["cpu-omniglot-5shot-sparse-maml"]
    assert omniglot == dataclasses.replace(glyphs, dataset="omniglot", seeds=3)
    assert runs["cpu-glyphs-1shot-maml"].inner_lr == 0.1
    assert runs["cpu-glyphs-1shot-sparse-maml"].inner_lr == 0.4
    rates = {}
    for name, config in runs.items():
        if "1shot" in name and "choice" in name:
            rates.setdefault((name.split("-1shot")[0], config.method), []).append(config.inner_lr)
    assert rates == {
        **{("cpu-glyphs", method): [*ALL_RATES] for method in ("fomaml", "anil", "boil")},
        ("cpu-mini-imagenet", "fomaml"): [0.025, 0.05, 0.1],
        ("cpu-omniglot", "fomaml"): [0.025, 0.05, 0.1, 0.2],
    }
    assert runs["cpu-glyphs-1shot-boil-alpha-0.2"].seeds == 5
    own = {(run.split("-")[1], dataset) for run, dataset in tests}
    assert own == {
        (run, dataset)
        for run in ("glyphs", "omniglot")
        for dataset in ("omniglot", "glyphs", "mnist", "fashion_mnist")
        if run != dataset
    }


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_table_s1_does_not_adapt_batch_norm_and_clips(scale):
    runs, _ = asked("table S1", Flags(scale=scale))
    networks = ("resnet12", "resnet12-large")
    methods = ("fomaml", "anil", "sparse-maml", "sparse-relu-maml")
    assert set(runs) == {
        f"{scale}-{network}-{shots}shot-{method}"
        for network in networks for shots in (1, 5) for method in methods
    }  # fmt: skip
    for c in runs.values():
        assert said(c, "adapt_norm", "clip", "mask_lr", "ensemble") == (False, 10, 0.01, 3)
        assert c.seeds == 3 and not c.second_order
        if scale == "paper":
            assert said(c, "inner_lr", "inner_steps", "test_inner_steps") == (0.05, 35, 35)
            assert said(c, "meta_batch_size", "epochs", "steps_per_epoch") == (1, 40, 1000)
            assert c.channels is None and c.theta_lr == 0.001
        else:
            large = c.network == "resnet12-large"
            assert c.channels == ((8, 20, 40, 80) if large else (8, 16, 32, 64))
            assert c.dataset == "glyphs"


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_tables_s2_and_s3_vary_one_thing(scale):
    runs, _ = asked("table S2", Flags(scale=scale))
    start = {"paper": "paper", "cpu": "cpu-glyphs"}[scale]
    sparse = ("sparse-maml", "sparse-relu-maml", "sparse-maml-plus")
    assert set(runs) == {f"{start}-{shots}shot-{m}" for shots in (1, 5) for m in sparse}
    base = runs[f"{start}-5shot-sparse-maml"]
    runs, _ = asked("table S3", Flags(scale=scale))
    changes = {
        "": {}, "-bias-False": {"bias": False},
        "-norm-support": {"batch_norm": "support"}, "-norm-running": {"batch_norm": "running"},
    }  # fmt: skip
    assert len(runs) == 2 * len(changes)
    for mark, changed in changes.items():
        for method in ("sparse-maml", "fomaml"):
            own = {"method": method, **changed}
            if method == "fomaml":
                own["inner_lr"] = 0.1
                if scale == "paper":
                    own |= {"inner_steps": 10, "test_inner_steps": 10}
            c = runs[f"{start}-5shot-{method}{mark}"]
            assert c == dataclasses.replace(base, **own)


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_table_s4_learns_theta_first(scale, tmp_path):
    runs, _ = asked("table S4", Flags(scale=scale), tmp_path)
    start = {"paper": "paper-two-phases", "cpu": "cpu-glyphs"}[scale]
    for shots in (1, 5):
        first = runs.pop(f"{start}-{shots}shot-fomaml")
        assert first.theta_from is None and first.theta_lr == 0.001
        for mark, initial in (("-sparsity-0", 0.0), ("", 0.5)):
            c = runs.pop(f"{start}-{shots}shot-sparse-maml{mark}-theta-fixed")
            assert c.theta_from == str(tmp_path / f"{start}-{shots}shot-fomaml")
            assert said(c, "theta_lr", "initial_sparsity") == (0, initial)
            assert said(c, "method", "width", "seeds") == ("sparse-maml", first.width, 5)
    assert not runs


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_the_figures_vary_sparsity_steps_and_width(scale, drawn):
    flags, shots = Flags(scale=scale), scales.FIGURE_SHOTS[scale]
    runs, _ = asked("figure 1", flags)
    assert runs == asked("figure S1", flags)[0]
    assert sorted((c.shots, c.initial_sparsity) for c in runs.values()) == [
        (n, sparsity) for n in shots for sparsity in (0, 0.1, 0.5, 0.9)
    ]
    runs, _ = asked("figure 2", flags)
    found = [said(c, "shots", "method", "inner_steps", "inner_lr") for c in runs.values()]
    assert sorted(found) == [
        (n, method, k, 0.1)
        for n in shots for method in ("fomaml", "sparse-maml") for k in (1, 5, 10, 25, 50)
    ]  # fmt: skip
    assert all(c.test_inner_steps == c.inner_steps for c in runs.values())
    more, _ = asked("figure S2", flags)
    by_width = {name: c for name, c in more.items() if name not in runs}
    usual = 64 if scale == "paper" else 32
    widths = {c.width for c in by_width.values()} | {usual}
    assert widths == {8, 16, 32, 64, 128} and runs.items() <= more.items()
    if scale == "paper":
        for c in runs.values():
            assert said(c, "width", "theta_lr", "mask_lr", "seeds") == (64, 0.001, 0.001, 5)
            assert c.meta_batch_size == (4 if c.shots == 1 else 2)


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_a_run_that_several_tables_need_has_one_name(scale, drawn):
    names = {}
    for table in NAMES:
        for name, config in asked(table, Flags(scale=scale))[0].items():
            # The configurations of Table 1's MAML rates and of the presets are compared whole.
            assert names.setdefault(config, name) == name, table
    assert len(set(names.values())) == len(names)
    # By the docstring of `scales`.
    if scale == "cpu":
        of_table_1 = asked("table 1", CPU)[0]
        seeds = {"glyphs": 0, "mini": 0, "omniglot": 0}
        for name, config in of_table_1.items():
            seeds[name.split("-")[1]] += config.seeds
        assert seeds == {"glyphs": 116, "mini": 26, "omniglot": 26}
        costs = {name: sum(c.seeds for c in asked(name, CPU)[0].values()) for name in NAMES}
        assert said_costs(costs) == (48, 30, 40, 30, 20, 20, 32, 32 + 17)


def said_costs(costs):
    tables = [f"table S{n}" for n in (1, 2, 3, 4)]
    return tuple(costs[n] for n in (*tables, "figure 1", "figure S1", "figure 2", "figure S2"))


def test_the_presets_are_those_of_the_tables():
    for (shown, scale), settings in scales.SETTINGS.items():
        for setting in settings:
            if scale == "paper" and shown != "other domains":
                assert setting.preset == shown.lower().replace(" ", "-")
    text = presets.describe()
    for name in ("table-1", "table-s1", "table-s3", "table-s4", "figure-1", "figure-2"):
        assert f"  {name}, 1-shot: --" in text and f"  {name}, 5-shot: --" in text
    assert "--no-adapt-norm" in text and "--clip=10.0" in text
    both = [presets.preset_config("table-s1", None, m, 5) for m in ("anil", "sparse-maml")]
    assert both[0] == dataclasses.replace(both[1], method=both[0].method)


# ---- printing


def store(out, name, config, accuracies, frozen=0.4):
    """The folder of a finished run."""
    folder = out / name
    folder.mkdir(parents=True)
    images = {"shape": [28, 28, 1], "mean": [0.0], "std": [1.0]}
    record = {"config": dataclasses.asdict(config), "images": images}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "result.json").write_text(json.dumps(made_up(config, accuracies, frozen)))
    lines = [json.dumps(row) + "\n" for row in rows(config.seeds)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def show(name, *flags):
    kind, label = name.split()
    reproduce.main(["--no-run", f"--{kind}", label, *flags])


def glyphs(table="table 1"):
    return scales.SETTINGS[table, "cpu"][0]


def store_fomaml(out):
    """FOMAML with 5 shots: the runs that choose the rate 0.2, and the chosen one."""
    for rate in ALL_RATES[2:]:
        store(out, *paper_few_shot.choice(CPU, glyphs(), 5, "fomaml", rate), [0.3])
    run = glyphs().run(CPU, 5, "fomaml", inner_lr=0.2)
    return store(out, *run, [0.60, 0.61, 0.62, 0.63, 0.64])


def test_table_1_is_printed_with_the_papers_numbers(tmp_path, capsys):
    store_fomaml(tmp_path)
    run = glyphs().run(CPU, 5, "sparse-maml")
    store(tmp_path, *run, [0.62, 0.64, 0.66, 0.68, 0.70])
    show("table 1", "--out", str(tmp_path))
    text = capsys.readouterr().out
    found = table_rows(text)
    # 60 to 64: squares of the deviations 4 + 1 + 1 + 4 over 4; 62 to 70 is twice as wide.
    fomaml = ["- / 48.07", "62.00 +- 1.58 (n = 5) / 63.15", "-"]
    assert found[1] == ["FOMAML; inner rate 0.2 of 0.05 0.1 0.2 0.4 for 5-shot", *fomaml]
    sparse = ["- / 50.35", "66.00 +- 3.16 (n = 5) / 67.03 +- 0.74", "-, 40.00 +- 0.00"]
    assert found[2] == ["sparse-MAML", *sparse]
    # 2, 3, 4, 5 and 6 points: the standard error is sqrt(2.5 / 5), and t = 2.78.
    said = "5-shot: sparse-MAML is above FOMAML: +4.00 points, standard error 0.71 over 5 seeds."
    assert said in text
    # Tested on its own data only.
    accuracy, frozen = "66.00 +- 3.16 (n = 5)", "40.00 +- 0.00 (n = 5)"
    assert found[-2] == ["glyphs", "5", "FOMAML", "-", "62.00 +- 1.58 (n = 5)", "-", "-", "-"]
    assert found[-1] == ["glyphs", "5", "sparse-MAML", "-", accuracy, "-", "-", frozen]
    assert "miniImageNet, Conv4-32" not in text


def test_tests_on_other_data_are_saved_with_the_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(saved, "RESULTS", tmp_path / "results")
    out = tmp_path / "runs"
    name, config = glyphs().run(CPU, 5, "sparse-maml")
    folder = store(out, name, config, [0.62, 0.64, 0.66, 0.68, 0.70])
    test = evaluate.test_of(evaluate.Flags(folder, test_inner_steps=5), config)
    path = folder / "evaluations" / f"{evaluate.name_of('mnist', test)}.json"
    assert path.name == "mnist-test-5way-5shot-15query-K5-600tasks-transductive.json"
    path.parent.mkdir()
    settings = {"dataset": "mnist", "split": "test", "tasks": 600, "batch_norm": "transductive"}
    settings |= {"ensemble": False, **test.sizes._asdict()}
    of_seeds = [{"accuracy": x, "interval95": 0.01} for x in (0.7, 0.72, 0.74, 0.76, 0.78)]
    tested = {"accuracy": 0.74, "accuracy_std_over_seeds": 0.03, "test_tasks": 600}
    tested["seeds"] = of_seeds
    path.write_text(json.dumps({"settings": settings, "result": tested}))
    show("table 1", "--out", str(out), "--save")
    before = capsys.readouterr().out
    cells = table_rows(before)[-1]
    assert cells[3:7] == ["-", "66.00 +- 3.16 (n = 5)", "74.00 +- 3.16 (n = 5)", "-"]
    stored = tmp_path / "results" / "table-1.json"
    content = json.loads(stored.read_text())
    assert content["runs"][name]["evaluations"][path.stem]["result"] == tested
    # The folder of the run, without the test: a saved one is kept or not overwritten.
    path.unlink()
    capsys.readouterr()
    refused(f"{stored} would lose 1 runs, or their tests", capsys, "table 1", out, "--save")
    capsys.readouterr()
    show("table 1", "--out", str(out), "--save", "--keep")
    assert capsys.readouterr().out == before
    assert json.loads(stored.read_text()) == content
    shutil.rmtree(out)
    show("table 1")
    assert before.startswith(capsys.readouterr().out)


def test_a_saved_run_is_shown_beside_its_unfinished_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(saved, "RESULTS", tmp_path / "results")
    name, config = glyphs().run(CPU, 5, "sparse-maml")
    folder = store(tmp_path / "runs", name, config, [0.6] * 5)
    show("table S3", "--out", str(tmp_path / "runs"), "--save")
    capsys.readouterr()
    (folder / "result.json").unlink()
    show("table S3", "--out", str(tmp_path / "runs"), "--keep")
    assert "60.00 +- 0.00 (n = 5)" in capsys.readouterr().out


def test_a_save_keeps_earlier_runs_or_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(saved, "RESULTS", tmp_path / "results")
    first, second = tmp_path / "first", tmp_path / "second"
    store(first, *glyphs().run(CPU, 5, "sparse-maml"), [0.6] * 5)
    show("table S3", "--out", str(first), "--save")
    path = tmp_path / "results" / "table-s3.json"
    before = path.read_bytes()
    store(second, *glyphs().run(CPU, 5, "sparse-maml", bias=False), [0.5] * 5)
    capsys.readouterr()
    message = (
        f"{path} would lose 1 runs, or their tests on other data, that {second} lacks, such as"
        " cpu-glyphs-5shot-sparse-maml;"
    )
    refused(message, capsys, "table S3", second, "--save")
    assert path.read_bytes() == before
    capsys.readouterr()
    show("table S3", "--out", str(second), "--save", "--keep")
    shown = capsys.readouterr().out
    assert [row[3] for row in table_rows(shown)[1:]] == [
        "60.00 +- 0.00 (n = 5) / 67.03 +- 0.74", "50.00 +- 0.00 (n = 5) / 66.11 +- 0.57",
    ]  # fmt: skip
    show("table S3")
    assert shown.startswith(capsys.readouterr().out)
    # The folder's own run is the one that counts.
    shutil.rmtree(first)
    content = json.loads(path.read_text())
    content["runs"]["not-shown"] = content["runs"]["cpu-glyphs-5shot-sparse-maml"]
    path.write_text(json.dumps(content))
    store(first, *glyphs().run(CPU, 5, "sparse-maml"), [0.7] * 5)
    show("table S3", "--out", str(first), "--save", "--keep")
    assert "70.00 +- 0.00 (n = 5)" in capsys.readouterr().out
    assert len(json.loads(path.read_text())["runs"]) == 3


def test_a_run_of_another_tables_file_is_kept_and_not_run_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(saved, "RESULTS", tmp_path / "results")
    store(tmp_path / "first", *glyphs().run(CPU, 5, "fomaml"), [0.6] * 5)
    show("table S3", "--out", str(tmp_path / "first"), "--save")
    monkeypatch.setattr(scales, "STEPS", (5,))
    store(tmp_path / "second", *scales.with_steps(CPU, 5, "sparse-maml", 5), [0.5] * 3)
    capsys.readouterr()
    made = []
    monkeypatch.setattr(
        runs,
        "run",
        lambda _, config, place, __: (made.append(config.method) or place, place.result()),
    )
    monkeypatch.setattr(runs, "draw_missing", lambda *_: None)
    # Without --no-run: nothing is missing.
    reproduce.main(["--figure", "2", "--out", str(tmp_path / "second"), "--keep"])
    assert table_rows(capsys.readouterr().out)[1:] == [
        ["5", "5", "50.00 +- 0.00 (n = 3)", "60.00 +- 0.00 (n = 5)"]
    ]
    assert made == ["sparse-maml"]  # of its folder; FOMAML's is in a results file


def test_another_configuration_is_refused_where_it_is(tmp_path, capsys):
    flags = "--keep", "--seeds", "2", "--timesteps", "1000"
    message = "table-s8.json/p0.98-online-adam-1000 holds a run of another configuration: seeds 2"
    refused(message, capsys, "table S8", tmp_path, *flags)


def test_keep_without_a_folder_of_runs_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        show("table S3", "--keep")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and "--keep adds to the folder of the runs: name it" in line


def test_table_s1_has_ensembles_and_sparsity(tmp_path, capsys):
    setting = scales.SETTINGS["table S1", "cpu"][1]
    for method in ("fomaml", "sparse-relu-maml"):
        store(tmp_path, *setting.run(CPU, 1, method), [0.5, 0.52, 0.54], 0.25)
    show("table S1", "--out", str(tmp_path))
    maml, relu = table_rows(capsys.readouterr().out)[1:]
    ours, ensemble = "52.00 +- 2.00 (n = 3)", "54.00 +- 2.00 (n = 3)"
    assert maml[1:] == ["1", "MAML (first order)", f"{ours} / 53.51", f"{ensemble} / 55.65", "-"]
    frozen = "25.00 +- 0.00 (n = 3) / 29.56"
    cells = [f"{ours} / 55.29", f"{ensemble} / 57.44", frozen]
    assert relu[1:] == ["1", "sparse-ReLU-MAML", *cells]


def test_table_s2_prints_the_settings(tmp_path, capsys):
    (setting,) = scales.SETTINGS["table S2", "paper"]
    store(tmp_path, *setting.run(PAPER, 1, "sparse-maml-plus"), [0.5] * 5)
    show("table S2", "--scale", "paper", "--out", str(tmp_path))
    text = capsys.readouterr().out
    (line,) = table_rows(text)[1:]
    settings = ["0.1", "35, 100", "0.001", "0.015", "nesterov", "60,000 x 4"]
    accuracy, frozen = "50.00 +- 0.00 (n = 5)", "40.00 +- 0.00 (n = 5)"
    assert line[2:] == ["sparse-MAML+", *settings, accuracy, frozen]
    assert "compare the methods with each other" not in text


def test_table_s3_compares_both_readings_with_the_paper(tmp_path, capsys):
    for varied in ({"batch_norm": "support"}, {"batch_norm": "running"}, {"bias": False}):
        store(tmp_path, *glyphs().run(CPU, 5, "sparse-maml", **varied), [0.5] * 5)
    run = glyphs().run(CPU, 5, "fomaml", batch_norm="running")
    store(tmp_path, *run, [0.4] * 5)
    show("table S3", "--out", str(tmp_path))
    text = capsys.readouterr().out
    assert "`support`" in text and "two readings" in text
    ours, frozen = "50.00 +- 0.00 (n = 5)", "40.00 +- 0.00 (n = 5)"
    fomaml = "40.00 +- 0.00 (n = 5) / 55.58 +- 1.68"
    assert table_rows(text)[1:] == [
        ["sparse-MAML", "transductive", "no", f"{ours} / 66.11 +- 0.57", frozen],
        ["sparse-MAML", "support", "yes", f"{ours} / 54.75 +- 1.17", frozen],
        ["sparse-MAML", "running", "yes", f"{ours} / 54.75 +- 1.17", frozen],
        ["FOMAML", "running", "yes", fomaml, "-"],
    ]


def test_table_s4_is_shown_again_from_its_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(saved, "RESULTS", tmp_path / "results")
    out = tmp_path / "runs"
    store(out, *glyphs().run(CPU, 5, "fomaml"), [0.6] * 5)
    runner = Runner(out, False, "")
    second = paper_few_shot.second_phase(CPU, runner, 5, 0.0)
    store(out, *second, [0.62, 0.64, 0.66, 0.68, 0.70], 0.3)
    show("table S4", "--out", str(out), "--save")
    before = capsys.readouterr().out
    first, mask = table_rows(before)[1:]
    assert first == ["5", "theta, FOMAML", "-", "60.00 +- 0.00 (n = 5)", "-"]
    accuracy, frozen = "66.00 +- 3.16 (n = 5) / 64.68 +- 0.16", "30.00 +- 0.00 (n = 5) / 29"
    assert mask == ["5", "m, theta fixed", "0", accuracy, frozen]
    text = (tmp_path / "results" / "table-s4.json").read_text()
    assert '"theta_from":"cpu-glyphs-5shot-fomaml"' in text and str(tmp_path) not in text
    show("table S4")
    assert before.startswith(capsys.readouterr().out)


def test_theta_of_another_run_is_refused(tmp_path, capsys):
    store(tmp_path, *glyphs().run(CPU, 5, "fomaml"), [0.6] * 5)
    name, config = paper_few_shot.second_phase(CPU, Runner(tmp_path, False, ""), 5, 0.0)
    other = dataclasses.replace(config, theta_from=str(tmp_path / "other"))
    store(tmp_path, name, other, [0.6] * 5)
    refused("holds a run of another configuration: theta_from", capsys, "table S4", tmp_path)


def refused(message, capsys, name, out, *flags):
    """The table is refused in one line."""
    with pytest.raises(SystemExit) as stopped:
        show(name, "--out", str(out), *flags)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and message in line


# ---- figures


@pytest.mark.parametrize(("name", "titles"), [
    ("figure 1", ["weights"]), ("figure S1", ["batch-norm gains", "biases"]),
])  # fmt: skip
def test_sparsity_is_drawn_by_layer_and_start(name, titles, tmp_path, capsys, drawn):
    for initial, accuracy in ((0.0, 0.5), (0.9, 0.6)):
        run = glyphs().run(CPU, 5, "sparse-maml", initial_sparsity=initial)
        store(tmp_path, *run, [accuracy] * 5, 0.7)
    show(name, "--out", str(tmp_path))
    head, *found = table_rows(capsys.readouterr().out)
    layers = head[4:]
    weights, others = ["conv1/kernel", "head/kernel"], ["norm1/scale", "conv1/bias"]
    assert layers == (weights if name == "figure 1" else others)
    frozen = "70.00 +- 0.00 (n = 5)"
    assert [row[:4] for row in found] == [
        ["5", "0", "50.00 +- 0.00 (n = 5)", frozen], ["5", "90", "60.00 +- 0.00 (n = 5)", frozen],
    ]  # fmt: skip
    (figure,) = drawn.values()
    expected = [f"{part}, 5-shot,\nfrom {start}%" for part in titles for start in (0, 90)]
    assert [axis.get_title() for axis in figure.axes] == expected
    lines = figure.axes[0].lines
    assert len(lines) == len(layers) // len(titles)
    assert [tuple(point) for point in lines[0].get_xydata()] == [(0, 50), (100, 75)]


def test_a_results_file_keeps_few_rows(tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(saved, "RESULTS", tmp_path / "results")
    name, config = glyphs().run(CPU, 5, "sparse-maml", initial_sparsity=0.1)
    folder = store(tmp_path / "runs", name, config, [0.5] * 5)
    frozen = dict.fromkeys(LAYERS, [0.1] * 5)
    lines = [{"epoch": i, "step": 100 * i, "sparsity": frozen} for i in range(401)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    show("figure 1", "--out", str(tmp_path / "runs"), "--save")
    text = (tmp_path / "results" / "figure-1.json").read_text()
    kept = json.loads(text)["runs"][name]["rows"]
    assert [row["step"] for row in kept] == [*range(0, 40001, 800)]  # every eighth of 401
    assert set(kept[0]["sparsity"]) == {"conv1/kernel", "head/kernel"}
    show("figure 1", "--save", "--out", str(tmp_path / "runs"))
    assert (tmp_path / "results" / "figure-1.json").read_text() == text
    shutil.rmtree(tmp_path / "runs" / name)
    store(tmp_path / "runs", *glyphs().run(CPU, 5, "sparse-maml"), [0.5] * 5)
    show("figure 1", "--save", "--keep", "--out", str(tmp_path / "runs"))
    content = json.loads((tmp_path / "results" / "figure-1.json").read_text())
    assert len(content["runs"]) == 2 and content["runs"][name]["rows"] == kept


def test_accuracy_is_drawn_against_steps_and_width(tmp_path, capsys, drawn):
    for steps, accuracies in ((1, [0.52, 0.54, 0.56]), (50, [0.6] * 3)):
        run = scales.with_steps(CPU, 5, "sparse-maml", steps)
        store(tmp_path, *run, accuracies)
    for width, seeds in ((8, 3), (32, 5)):
        run = scales.swept(CPU, 5, "sparse-maml", width=width)
        assert run[1].seeds == seeds  # that of width 32 is one of Table 1
        store(tmp_path, *run, [0.7] * seeds, width / 100)
    show("figure 2", "--out", str(tmp_path))
    assert table_rows(capsys.readouterr().out)[1:] == [
        ["5", "1", "54.00 +- 2.00 (n = 3)", "-"], ["5", "50", "60.00 +- 0.00 (n = 3)", "-"],
    ]  # fmt: skip
    show("figure S2", "--out", str(tmp_path))
    assert table_rows(capsys.readouterr().out)[-2:] == [
        ["5", "8", "70.00 +- 0.00 (n = 3)", "8.00 +- 0.00 (n = 3)"],
        ["5", "32", "70.00 +- 0.00 (n = 5)", "32.00 +- 0.00 (n = 5)"],
    ]
    (one,), (steps, _, width) = drawn["figure-2.png"].axes, drawn["figure-s2.png"].axes
    assert (steps.get_xlabel(), width.get_xlabel()) == ("inner steps K", "width")
    for axis, expected in (
        (one, [(1, 54), (50, 60)]), (steps, [(1, 54), (50, 60)]), (width, [(8, 8), (32, 32)]),
    ):  # fmt: skip
        points = axis.containers[0].lines[0].get_xydata()
        assert np.allclose(points, expected)
    assert one.containers[0].get_label() == "sparse-MAML"
    bars = one.containers[0].lines[2][0].get_segments()
    assert np.ptp(bars[0][:, 1]) == pytest.approx(4)  # the std is 2


def test_there_is_nothing_to_draw_without_runs(tmp_path, capsys):
    for name in ("figure 1", "figure 2", "figure S1", "figure S2"):
        refused("there is nothing to show", capsys, name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_flags_of_other_tables_are_refused(name, tmp_path, capsys):
    flag, label = name.split()
    refused(f"--seeds is not read with --{flag} {label}", capsys, name, tmp_path, "--seeds", "2")
    refused("'big' for argument '--scale'", capsys, name, tmp_path, "--scale", "big")


def test_scale_is_refused_by_other_tables(tmp_path, capsys):
    for name in ("table S9", "figure 3", "table few-shot"):
        flag, label = name.split()
        message = f"--scale is not read with --{flag} {label}"
        refused(message, capsys, name, tmp_path, "--scale", "cpu")


def test_figures_have_the_names_of_the_index():
    shows = {name: READS[name].show for name in NAMES if name.startswith("figure")}
    assert shows["figure 1"] is few_shot_figures.figure_1
    assert shows["figure S2"] is few_shot_figures.figure_s2
