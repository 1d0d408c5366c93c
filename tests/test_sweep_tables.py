"""`experiments.reproduce --sweep`: the settings that sweeps choose, beside the paper's."""

import json

import pytest

pytest.importorskip("optuna")

from experiments import reproduce
from experiments.sweep.results import winner_path
from experiments.tables import sweeps
from experiments.tables.flags import Flags
from experiments.tables.index import SWEEPS

PLANS = {
    "S2": sweeps._few_shot_plans,
    "S6": sweeps._stream_plans,
    "S9": sweeps._online_plans,
}


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| rotations")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def make_small(patch):
    patch.setitem(
        sweeps.SMALL, "S6", {"data": "glyphs", "tasks": 2, "samples_per_task": 40, "width": 8}
    )
    ranges = {"inner_lr": "0.05:0.3:log", "mask_lr": "0.3,0.5", "glances": "1,2"}
    patch.setitem(sweeps.RANGES, "S6", ranges)
    patch.setitem(sweeps.TRIALS, "cpu", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of two finished sweeps with two trials each."""
    out = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        reproduce.main(words_of(out))
    return out


@pytest.fixture
def swept(folder, monkeypatch):
    """The flags that show the sweeps, and their folder."""
    make_small(monkeypatch)
    return words_of(folder), folder


def words_of(out):
    return ["--table=S6", "--sweep", "--streams=rotations", "--seeds=1", f"--out={out}"]


@pytest.mark.slow
def test_the_row_of_a_sweep(swept, capsys):
    words, out = swept
    reproduce.main([*words, "--no-run"])
    found = rows(capsys.readouterr().out)
    papers = {"lamaml": "0.15, 0.3, 5", "sparse-lamaml": "0.15, 1.7, 5"}  # Table S6
    assert [row[0] for row in found] == [f"rotations, {method}" for method in papers]
    for row, (method, paper) in zip(found, papers.items(), strict=True):
        folder = out / f"sweep-S6-cpu-rotations-{method}"
        trials = json.loads((folder / "trials.json").read_text())["trials"]
        best = max(trials, key=lambda trial: trial["value"])
        result = json.loads((winner_path(folder, best["trial"]) / "result.json").read_text())
        chosen = [f"{best['params'][name]:.3g}" for name in ("inner_lr", "mask_lr", "glances")]
        assert row[2:] == [
            ", ".join(chosen), paper, "2", f"{100 * best['value']:.2f}",
            f"{100 * result['retained_accuracy']['mean']:.2f}",
        ]  # fmt: skip
        assert result["part"] == "test"


def test_without_sweeps_there_are_no_rows(tmp_path, capsys):
    reproduce.main(["--table=S9", "--sweep", "--no-run", f"--out={tmp_path}"])
    assert capsys.readouterr().out.rstrip().endswith("|---|---|---|---|---|---|---|")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_of_other_settings_is_refused(swept, capsys):
    words, _ = swept
    with pytest.raises(SystemExit) as stop:
        reproduce.main([*words, "--no-run", "--seeds=2"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "holds another sweep; choose another --out" in line


@pytest.mark.parametrize("scale", ["paper", "cpu"])
@pytest.mark.parametrize("table", PLANS)
def test_each_method_has_a_sweep_whose_ranges_hold_the_paper_s_choice(table, scale):
    plans = list(PLANS[table](Flags(scale=scale)))
    assert len({plan.name for plan in plans}) == len(plans) == {"S2": 6, "S6": 6, "S9": 8}[table]
    for plan in plans:
        paper = [float(value) for value in plan.paper.split(", ") if value != "-"]
        assert len(paper) == len(plan.ranges) > 0
        for value, text in zip(paper, plan.ranges.values(), strict=True):
            if ":" in text:
                low, high, _ = text.split(":")
                assert float(low) < value < float(high), plan
            else:
                assert f"{value:g}" in text.split(","), plan


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--table 3", "--sweep is read only with --table S2, S6, S9, not with --table 3"),
        ("--figure 1", "--sweep is read only with --table S2, S6, S9, not with --figure 1"),
        ("--claims", "--sweep is not read with --claims"),
        ("--table S6 --save", "--save is not read with --sweep"),
        ("--table S9 --document", "--document is not read with --sweep"),
        ("--table S9 --timesteps 5", "--timesteps is not read with --table S9 --sweep"),
    ],
)
def test_flags_that_sweeps_do_not_read(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main([*words.split(), "--sweep"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_each_table_has_plans():
    assert [f"table {table}" for table in PLANS] == list(SWEEPS)
