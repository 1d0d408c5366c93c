"""Tables with the paper's figures, from made-up results."""

import contextlib
import dataclasses
import json
import typing

import numpy as np
import pytest

from experiments import reproduce
from experiments.fewshot.presets import preset_config
from experiments.published import TABLE_S5, TABLE_S8
from experiments.tables import continual as tables
from experiments.tables import figures as drawing
from experiments.tables import online as online_tables
from experiments.tables import saved
from experiments.tables.continual import cell_config
from experiments.tables.flags import Flags
from experiments.tables.index import READS
from experiments.tables.runner import Runner
from jaxsparse.training import RunError


def value(mean, std=0.01):
    return {"mean": mean, "std": std}


def store(out, stream, method, retained, mark="", sparsity=0.08, **settings):
    """The folder of a finished run of two seeds."""
    config = cell_config(Flags(seeds=2), stream, method, **settings)
    folder = out / f"{stream}-{method}{mark}"
    folder.mkdir(parents=True)
    names = ("total", "dense1/kernel", "dense2/kernel", "head/kernel")
    names += ("dense1/bias", "dense2/bias", "head/bias")
    result = {
        "retained_accuracy": value(sum(retained) / 2),
        "backward_transfer_interference": value(-0.1),
        "learning_accuracy": value(0.85),
        "forward_transfer": value(0.6),
        "sparsity": {name: value(sparsity, 0.002) for name in names},
        "seeds": [{"retained_accuracy": x} for x in retained],
    }
    (folder / "config.json").write_text(json.dumps({"config": dataclasses.asdict(config)}))
    (folder / "result.json").write_text(json.dumps(result))
    rows = [
        {"step": task, "task": task, "sparsity": {name: [x, x + 0.02] for name in names}}
        for task, x in enumerate((0.0, 0.1))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(out, *flags):
    reproduce.main(["--no-run", "--seeds", "2", "--out", str(out), *flags])


def test_sparsity_is_shown_with_the_papers(tmp_path, capsys):
    store(tmp_path, "rotations", "sparse-lamaml", (0.76, 0.77), sparsity=0.0733)
    store(tmp_path, "rotations", "lamaml", (0.76, 0.75), sparsity=0.30)
    run(tmp_path, "--table", "S5", "--streams", "rotations")
    lamaml, sparse = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "7.33 +- 0.20 / 7.13" in sparse and sparse.endswith("| yes, 0.2 apart |")
    assert "30.00 +- 0.20 / 20.47" in lamaml and lamaml.endswith("| no, 9.5 apart |")


def test_a_spread_wider_than_three_points_is_allowed_for():
    paper = TABLE_S5["rotations", "lamaml"]
    assert tables._verdict({"total": value(0.26, 0.01)}, paper) == "no, 5.5 apart"
    assert tables._verdict({"total": value(0.26, 0.06)}, paper) == "yes, 5.5 apart"


def test_methods_are_compared_seed_by_seed(tmp_path, capsys):
    store(tmp_path, "rotations", "sparse-lamaml", (0.76, 0.78))
    store(tmp_path, "rotations", "er", (0.70, 0.71))
    store(tmp_path, "rotations", "lamaml", (0.755, 0.785))
    run(tmp_path, "--table", "3", "--streams", "rotations")
    out = capsys.readouterr().out
    # 6 and 7 points: mean 6.5, standard error 0.5; and 0.5 and -0.5.
    assert "above er's: +6.50 points, standard error 0.50 over 2 seeds" in out
    assert "not significantly different from lamaml's: +0.00 points, standard error 0.50" in out
    assert "| er | 70.50 +- 1.00 | -10.00 +- 1.00 | 85.00" in out


def test_a_run_without_a_new_field_has_its_default(tmp_path, capsys):
    store(tmp_path, "rotations", "er", (0.70, 0.71))
    path = tmp_path / "rotations-er" / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["second_order"]
    path.write_text(json.dumps(record))
    run(tmp_path, "--table", "3", "--streams", "rotations")
    assert "| er | 70.50 +- 1.00 |" in capsys.readouterr().out


def test_a_section_is_replaced_and_the_rest_stays(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    page.write_text("before\n<!-- table 3 -->\nold\n<!-- end of table 3 -->\nafter\n")
    other.write_text("<!-- table S3 -->\nold\n<!-- end of table S3 -->\n")
    for lines in (["one", "two"], ["three"]):
        reproduce.write_section(tmp_path, "table 3", lines)
    assert page.read_text() == "before\n<!-- table 3 -->\nthree\n<!-- end of table 3 -->\nafter\n"
    assert other.read_text() == "<!-- table S3 -->\nold\n<!-- end of table S3 -->\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "want one of --table, --figure and --claims"),
        (["--table", "S5", "--figure", "S3"], "want one of --table, --figure and --claims"),
        (["--table", "S5", "--claims"], "want one of --table, --figure and --claims"),
        (["--table", "S11"], "S11"),
        (["--table", "S5", "--seeds", "0"], "--seeds must be 1 or more, got 0"),
        (["--table", "3", "--streams", "rotations"], "holds a run of another configuration"),
    ],
)
def test_impossible_requests_are_one_line(flags, message, tmp_path, capsys):
    store(tmp_path, "rotations", "er", (0.7, 0.7))
    path = tmp_path / "rotations-er" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["glances"] = 99
    path.write_text(json.dumps(record))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *flags)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(lines) == 1 and message in lines[0]


def test_nothing_to_show_replaces_nothing(tmp_path, capsys, monkeypatch):
    document = tmp_path / "document.md"
    document.write_text("<!-- table 3 -->\nold\n<!-- end of table 3 -->\n")
    monkeypatch.setattr(reproduce, "PAGES", tmp_path)
    (tmp_path / "figure-s3.png").write_text("old")
    for flags in (["--table", "3", "--document"], ["--figure", "S3"]):
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path, *flags)
        assert stopped.value.code == 2
        assert "there is nothing to show" in capsys.readouterr().err
    assert "old" in document.read_text()
    assert (tmp_path / "figure-s3.png").read_text() == "old"


class Watched:
    """Flags that record which of them were read."""

    def __init__(self, flags):
        self._flags, self.read = flags, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self._flags, name)


@pytest.mark.parametrize("name", READS)
def test_a_table_reads_the_flags_it_is_said_to(name, tmp_path):
    flags = Watched(Flags(out=tmp_path, run=False))
    with contextlib.suppress(RunError):  # there is nothing to draw
        READS[name].show(flags, Runner(tmp_path, False, "again"))
    said = READS[name].flags
    assert flags.read - {"out", "data_dir"} == set(said)
    known = {field.name: typing.get_args(hint) for field, hint in flag_types()}
    for flag, values in said.items():
        if flag in ("streams", "methods"):
            assert set(values) <= set(typing.get_args(known[flag][0]))


def flag_types():
    hints = typing.get_type_hints(Flags)
    return [(field, hints[field.name]) for field in dataclasses.fields(Flags)]


def test_every_table_and_figure_is_there():
    hints = typing.get_type_hints(Flags)
    tables, figures = (
        [name for kind in typing.get_args(hints[flag]) for name in typing.get_args(kind)]
        for flag in ("table", "figure")
    )
    assert set(READS) == {f"table {name}" for name in tables} | {f"figure {n}" for n in figures}


@pytest.mark.parametrize("name", READS)
def test_the_document_has_a_place_for_each(name):
    text = "".join(page.read_text() for page in reproduce.PAGES.glob("*.md"))
    assert text.count(f"<!-- {name} -->") == text.count(f"<!-- end of {name} -->") == 1


@pytest.fixture
def drawn(monkeypatch):
    """The drawn figures: file name -> axes, kept open."""
    figures = {}
    monkeypatch.setattr(drawing, "save", lambda draw, _, name: figures.update({name: draw()}))
    return figures


def points(axis):
    """The (x, y) of each labelled line of error bars."""
    drawn = {bars.get_label(): bars.lines[0].get_xydata() for bars in axis.containers}
    assert all(len(xy) == len(drawing.WIDTHS) for xy in drawn.values())  # gaps break the line
    return {label: [tuple(p) for p in xy if not np.isnan(p[1])] for label, xy in drawn.items()}


def test_figure_s4_is_the_permuted_streams_with_accuracy(tmp_path, capsys, drawn):
    store(tmp_path, "permutations", "lamaml", (0.70, 0.72))
    store(tmp_path, "permutations", "lamaml", (0.60, 0.62), "-width-25", 0.3, width=25)
    store(tmp_path, "many-permutations", "sparse-lamaml", (0.5, 0.5))
    store(tmp_path, "rotations", "lamaml", (0.9, 0.9))
    run(tmp_path, "--figure", "S4")
    text = capsys.readouterr().out
    assert "rotations" not in text
    rows = [cells for cells in table_rows(text) if cells[0] in ("25", "100", "200")]
    assert rows == [
        ["25", "61.00 +- 1.00", "30.00 +- 0.20", "-", "-"],
        ["100", "71.00 +- 1.00", "8.00 +- 0.20", "-", "-"],
        ["200", "-", "-", "-", "-"],
        ["25", "-", "-", "-", "-"],
        ["100", "-", "-", "50.00 +- 1.00", "8.00 +- 0.20"],
        ["200", "-", "-", "-", "-"],
    ]
    (figure,) = [drawn.pop("figure-s4.png")]
    assert not drawn
    axes = np.array(figure.axes[: 2 * 4]).reshape(2, 4)
    assert axes[0, 0].get_title() == "permutations,\nlamaml"
    assert axes[1, 1].get_title() == "many-permutations,\nsparse-lamaml"
    # Sparsity by task where there is a run, nothing where there is none.
    assert axes[0, 0].lines[0].get_ydata() == pytest.approx([1, 11])
    assert not axes[0, 1].lines and not axes[1, 0].lines and axes[1, 1].lines
    wanted = (("retained accuracy RA [%]", (61, 71)), ("sparsity [%]", (30, 8)))
    for column, (label, values) in enumerate(wanted):
        axis = axes[0, 2 + column]
        assert axis.get_ylabel() == label
        assert points(axis)["lamaml"] == [(25, pytest.approx(values[0])), (100, values[1])]
        assert points(axis)["sparse-lamaml"] == []


def test_figure_3_is_rotations(tmp_path, capsys, drawn):
    store(tmp_path, "rotations", "lamaml", (0.7, 0.7), sparsity=0.2)
    run(tmp_path, "--figure", "3")
    assert ["100", "20.00 +- 0.20", "-"] in table_rows(capsys.readouterr().out)
    assert [*drawn] == ["figure-3.png"]
    titles = [axis.get_title() for axis in drawn["figure-3.png"].axes]
    assert titles == [
        f"rotations,\n{what}" for what in ("lamaml", "sparse-lamaml", "end of the stream")
    ]


def store_online(out, p, method, totals, sparsity=None, detections=None, mark="", **own):
    """The folder of a finished run of two seeds on a switching stream."""
    config = online_tables.cell_config(Flags(seeds=2), p, method, **own)
    folder = out / f"p{p:g}-{method}{mark}"
    folder.mkdir(parents=True)
    result = {
        # As in older runs, the stored deviations are not those of the seeds.
        "accuracy": value(sum(totals) / 2),
        "by_dataset": {
            "omniglot": value(0.97), "mnist": value(0.94), "fashion_mnist": None,
        },
        "sparsity": {"total": value(sparsity)} if sparsity else {},
        "seeds": [{"accuracy": x, "detections": detections} for x in totals],
    }  # fmt: skip
    if detections is None:
        for seed in result["seeds"]:
            del seed["detections"]
    (folder / "config.json").write_text(json.dumps({"config": dataclasses.asdict(config)}))
    (folder / "result.json").write_text(json.dumps(result))


def table_rows(text):
    """The cells of each line of the tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_online_accuracies_are_shown_with_the_papers(tmp_path, capsys):
    found = {"hits": 90, "switches": 100, "false_alarms": 1}
    store_online(tmp_path, 0.98, "sparse-cmaml", (0.94, 0.95), 0.4, found)
    store_online(tmp_path, 0.98, "bgd", (0.88, 0.892))
    store_online(tmp_path, 0.98, "cmaml-fixed", (0.93, 0.93))
    run(tmp_path, "--table", "S8", "--p", "0.98")
    out = capsys.readouterr().out
    bgd, _, sparse = table_rows(out)[1:]
    assert bgd[:3] == ["bgd", "10,000 x 2", "88.60 +- 0.85 / 87.8 +- 1.3"]
    assert bgd[5:] == ["- / 74.4 +- 1.1", "-", "-", "-"]  # no such batch, nothing detected
    assert sparse[2:4] == ["94.50 +- 0.71 / 94.2 +- 0.4", "97.00 +- 1.00 / 97.3 +- 0.1"]
    assert sparse[6:] == ["180 of 200", "2", "40.00 +- 1.00"]
    # 6 and 5.8 points: mean 5.9, standard error 0.1; Student's t of one degree is 12.7.
    assert "sparse-cmaml is above bgd: +5.90 points, standard error 0.10 over 2 seeds" in out
    # 1 and 2 points: three standard errors, too few for two seeds.
    assert "not significantly different from cmaml-fixed: +1.50 points, standard error 0.50" in out


def test_both_readings_of_a_misprinted_row_are_shown(tmp_path, capsys):
    store_online(tmp_path, 0.9, "sparse-relu-cmaml", (0.85, 0.86))
    run(tmp_path, "--table", "S8", "--p", "0.9")
    printed, moved = table_rows(capsys.readouterr().out)[1:]
    assert printed[::2][:2] == ["sparse-relu-cmaml (as printed)", "85.50 +- 0.71 / 84.7 +- 1.3"]
    assert moved[::2][:2] == ["sparse-relu-cmaml (moved left)", "85.50 +- 0.71 / 86.1 +- 0.2"]


def test_the_printed_accuracies_are_weighted_as_their_data_sets_are_drawn():
    for (method, _), readings in TABLE_S8.items():
        for reading, cells in readings.items():
            weights = {"omniglot": 0.5, "mnist": 0.25, "fashion_mnist": 0.25}
            weighted = sum(weight * cells[name].mean for name, weight in weights.items())
            close = abs(weighted - cells["total"].mean) < 0.7
            assert close == (reading != "as printed"), (method, reading)


def test_rates_are_shown_with_the_papers(tmp_path, capsys):
    store_online(tmp_path, 0.9, "cmaml-fixed", (0.85, 0.86))
    run(tmp_path, "--table", "S9", "--p", "0.9")
    (line,) = table_rows(capsys.readouterr().out)[1:]
    assert line == [
        "0.9", "cmaml-fixed", "85.50 +- 0.71 / 85.3 +- 0.5", "0.3", "-", "0.3, -",
    ]  # fmt: skip


def test_both_initial_rates_of_cmaml_are_shown(tmp_path, capsys):
    store_online(tmp_path, 0.9, "sparse-cmaml", (0.84, 0.85))
    store_online(tmp_path, 0.9, "cmaml", (0.80, 0.82))
    run(tmp_path, "--table", "S8", "--p", "0.9")
    code, table, _ = table_rows(capsys.readouterr().out)[1:]
    assert code[:3] == ["cmaml, alpha_0 0.0005", "10,000 x 2", "81.00 +- 1.41 / 83.3 +- 0.4"]
    assert table[:3] == ["cmaml, alpha_0 0.1", "-", "- / 83.3 +- 0.4"]  # not run
    store_online(tmp_path, 0.9, "cmaml", (0.83, 0.85), mark="-inner_lr-0.1", inner_lr=0.1)
    run(tmp_path, "--table", "S8", "--p", "0.9")
    printed = capsys.readouterr().out
    assert "| cmaml, alpha_0 0.1 | 10,000 x 2 | 84.00 +- 1.41 / 83.3 +- 0.4 |" in printed
    # 4 and 3 points, and 1 and 0.
    for rate, gap in (("0.0005", "+3.50"), ("0.1", "+0.50")):
        said = f"not significantly different from cmaml, alpha_0 {rate}: {gap} points"
        assert f"{said}, standard error 0.50" in printed
    run(tmp_path, "--table", "S9", "--p", "0.9")
    rows = [cells[2:4] for cells in table_rows(capsys.readouterr().out)[1:]]
    assert rows[:2] == [
        ["81.00 +- 1.41 / 83.3 +- 0.4", "0.0005"], ["84.00 +- 1.41 / 83.3 +- 0.4", "0.1"],
    ]  # fmt: skip


def test_a_short_stream_is_labelled(tmp_path, capsys):
    run(tmp_path, "--table", "S8", "--timesteps", "1000")
    assert "first 1,000 timesteps, the paper's over all 10,000" in capsys.readouterr().out


@pytest.mark.parametrize("order", [(0.98, 0.9), (0.9, 0.98)])
def test_kept_runs_are_shown_in_the_usual_order(tmp_path, capsys, monkeypatch, order):
    monkeypatch.setattr(saved, "RESULTS", tmp_path / "results")
    for p in order:
        store_online(tmp_path / str(p), p, "bgd", (0.8, 0.9))
        run(tmp_path / str(p), "--table", "S8", "--p", str(p), "--save", "--keep")
    capsys.readouterr()
    reproduce.main(["--no-run", "--table", "S8"])
    shown = capsys.readouterr().out
    assert shown.count("| bgd | 10,000 x 2 | 85.00 +- 7.07") == 2
    flags = json.loads((tmp_path / "results" / "table-s8.json").read_text())["flags"]
    assert "p" not in flags  # the default: 0.98, then 0.9


def test_whole_streams_have_one_seed(tmp_path, capsys):
    store_online(tmp_path, 0.9, "cmaml-fixed", (0.84,), mark="-seed-0", seeds=1)
    reproduce.main(["--no-run", "--out", str(tmp_path), "--table", "S8-full", "--p", "0.9"])
    (line,) = table_rows(capsys.readouterr().out)[1:]
    assert line[:3] == ["cmaml-fixed", "10,000 x 1", "84.00"]


def test_the_lead_is_shown_by_part_of_the_stream_and_data_set(tmp_path, capsys):
    timesteps = {"timesteps": 300}
    for method, totals, accuracies in (
        ("sparse-cmaml", (0.90, 0.92), ([0.8, 0.9], [0.9, 0.9], [0.95, 0.97])),
        ("cmaml", (0.89, 0.89), ([0.7, 0.9], [0.9, 0.8], [0.91, 0.91])),
    ):
        store_online(tmp_path, 0.9, method, totals, mark="-300", **timesteps)
        folder = tmp_path / f"p0.9-{method}-300"
        result = json.loads((folder / "result.json").read_text())
        for seed, total in zip(result["seeds"], totals, strict=True):
            seed["by_dataset"] = {"omniglot": total, "mnist": 0.5, "fashion_mnist": None}
        (folder / "result.json").write_text(json.dumps(result))
        rows = [{"interval": 0, "step": 0}]
        rows += [
            {"interval": n, "step": step, "interval_accuracy": values}
            for n, (step, values) in enumerate(zip((100, 250, 300), accuracies, strict=True), 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run(tmp_path, "--table", "S8-lead", "--p", "0.9", "--timesteps", "300")
    head, code, table = table_rows(capsys.readouterr().out)
    assert head[2:6] == ["all 300 timesteps", "1-100", "101-200", "201-300"]
    # 1 and 3 points, 10 and 0; no row ends at timestep 200.
    assert code[2:6] == ["+2.00 (1.00)", "+5.00 (5.00)", "-", "-"]
    assert code[6:] == ["+2.00 (1.00)", "+0.00 (0.00)", "-"]
    assert table == ["0.9", "0.1", *["-"] * 7]  # not run


def split_cifar_run(folder, accuracy, total, method="sparse-lamaml", **own):
    """A finished run, for example of sparse-La-MAML, with half of its head frozen."""
    config = cell_config(Flags(), "split-cifar10", method, memories=200, seeds=1, **own)
    sparsity = {"total": value(total), "head/kernel": value(0.5), "head/bias": value(1.0)}
    result = {
        "retained_accuracy": value(accuracy, None),
        "seeds": [{"seed": config.seed, "retained_accuracy": accuracy}],
        "sparsity": {} if method in ("er", "mer") else sparsity,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": dataclasses.asdict(config)}))
    (folder / "result.json").write_text(json.dumps(result))


def test_seeds_of_split_cifar_are_combined(tmp_path, capsys):
    # 1,523,050 parameters, 6,410 of them in the head.
    for seed, accuracy in enumerate((0.26, 0.30)):
        folder = tmp_path / f"split-cifar10-200-sparse-lamaml-seed-{seed}"
        split_cifar_run(folder, accuracy, 0.02, seed=seed)
    reproduce.main(["--no-run", "--out", str(tmp_path), "--table", "S7"])
    (line,) = table_rows(capsys.readouterr().out)[1:]
    head = 100 * (0.5 * 6400 + 10) / 6410
    rest = (2 * 1523050 - head * 6410) / (1523050 - 6410)
    assert line == [
        "200", "sparse-lamaml", "2", "28.00 +- 2.83 / 27.85 +- 0.69",
        f"{head:.2f} +- 0.00 / 57.5", f"{rest:.2f} +- 0.00 / 1.6", "2.00 +- 0.00", "yes",
    ]  # fmt: skip


def test_split_cifar_compares_the_seeds_that_both_have(tmp_path, capsys):
    runs = {("sparse-lamaml", 1): 0.26, ("sparse-lamaml", 2): 0.30, ("sparse-lamaml", 4): 0.50}
    runs |= {("er", 0): 0.90, ("er", 1): 0.25, ("er", 2): 0.26, ("lamaml", 4): 0.40}
    for (method, seed), accuracy in runs.items():
        folder = tmp_path / f"split-cifar10-200-{method}-seed-{seed}"
        split_cifar_run(folder, accuracy, 0.02, method, seed=seed)
    reproduce.main(["--no-run", "--out", str(tmp_path), "--table", "S7"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("- "))
    # 1 and 4 points: sqrt(4.5 / 2) is the standard error, and t = 12.7 for one degree of freedom.
    assert line == (
        "- 200 images: sparse-lamaml is not significantly different from er: +2.50 points, "
        "standard error 1.50 over 2 seeds."
    )


def test_each_reading_of_mer_has_its_row(tmp_path, capsys):
    for name, accuracy, own in (
        ("mer-replay_passes-1", 0.30, {"replay_passes": 1}), ("mer", 0.20, {}),
    ):  # fmt: skip
        folder = tmp_path / f"split-cifar10-200-{name}-seed-0"
        split_cifar_run(folder, accuracy, 0.0, "mer", **own)
    reproduce.main(["--no-run", "--out", str(tmp_path), "--table", "S7"])
    assert table_rows(capsys.readouterr().out)[1:] == [
        ["200", "mer, replay_passes 1", "1", "30.00 / 25.11 +- 1.77", "-", "-", "-", "no"],
        ["200", "mer", "1", "20.00 / 25.11 +- 1.77", "-", "-", "-", "no"],
    ]


def store_scan(out, method, masks, best):
    """The folders of a scan on rotations: RA is 0.8 at `best`, 0.7 elsewhere."""
    for glances in (5, 10):
        preset = cell_config(Flags(), "rotations", method)
        config = dataclasses.replace(preset, seeds=1, validation=True, glances=glances)
        grid = [
            {"inner_lr": alpha, "mask_lr": gamma, "theta_lr": config.theta_lr}
            for alpha in (0.05, 0.1, 0.15) for gamma in masks
        ]  # fmt: skip
        retained = [
            0.8 if (p["inner_lr"], p["mask_lr"], glances) == best else 0.7 for p in grid
        ]  # fmt: skip
        points = [
            {**p, "retained_accuracy": value(ra, None)}
            for p, ra in zip(grid, retained, strict=True)
        ]
        folder = out / f"settings-rotations-{method}-scan-{glances}-glances"
        folder.mkdir()
        whole = {"config": dataclasses.asdict(config), "grid": grid}
        (folder / "config.json").write_text(json.dumps(whole))
        (folder / "result.json").write_text(json.dumps({"points": points}))


def test_what_a_scan_chose_is_measured_on_all_seeds(tmp_path, capsys):
    store_scan(tmp_path, "lamaml", (0.1, 0.3, 0.5), (0.1, 0.5, 10))
    store_scan(tmp_path, "sparse-lamaml", (0.75, 1.7, 3.0), (0.15, 1.7, 5))  # the preset
    store(tmp_path, "rotations", "sparse-lamaml", (0.60, 0.62))
    chosen = {"inner_lr": 0.1, "mask_lr": 0.5, "glances": 10}
    name = "-alpha-0.1-mask_lr-0.5-glances-10"
    store(tmp_path, "rotations", "lamaml", (0.61, 0.65), name, **chosen)
    run(tmp_path, "--table", "S6")
    printed = capsys.readouterr().out
    assert [row for row in table_rows(printed) if row[0] == "rotations"] == [
        ["rotations", "lamaml", "0.1, 0.5, 10", "80.00", "63.00 +- 1.00", "0.15, 0.3, 5", "70.00"],
        ["rotations", "sparse-lamaml", "0.15, 1.7, 5", "80.00", "61.00 +- 1.00", "0.15, 1.7, 5",
         "80.00"],
    ]  # fmt: skip
    # -1 and -3 points.
    assert printed.strip().endswith(
        "RA of sparse-lamaml is not significantly different from lamaml's: -2.00 points, "
        "standard error 1.00 over 2 seeds."
    )


def test_choices_on_split_cifar_are_compared(tmp_path, capsys):
    frozen = (0.5 * 6400 + 10) / 1523050  # the head's, a little less because of float32
    short = {"validation": True, "samples_per_task": 2000}
    name = "split-cifar10-200-sparse-lamaml-held-out"
    split_cifar_run(tmp_path / name, 0.27, frozen, **short)
    split_cifar_run(
        tmp_path / f"{name}-augment-True", 0.24, 0.99999 * frozen, augment=True, **short
    )
    reproduce.main(["--no-run", "--out", str(tmp_path), "--table", "S7-choices"])
    cells = ["50.08 / 57.5", "0.00 / 1.6", "0.21"]
    assert table_rows(capsys.readouterr().out)[1:] == [
        ["200", "sparse-lamaml", "nothing", "27.00", *cells],
        ["200", "sparse-lamaml", "augment True", "24.00", *cells],
    ]
    for left_out in (["--methods", "lamaml"], ["--memories", "1000"]):
        reproduce.main(["--no-run", "--out", str(tmp_path), "--table", "S7-choices", *left_out])
        assert not table_rows(capsys.readouterr().out)[1:]


def test_whole_streams_of_augmented_images(tmp_path, capsys):
    folder = tmp_path / "split-cifar10-200-er-augmented-seed-0"
    split_cifar_run(folder, 0.231, 0.0, "er", augment=True, slope=0.5)
    reproduce.main(["--no-run", "--out", str(tmp_path), "--table", "S7-augmented"])
    assert table_rows(capsys.readouterr().out)[1:] == [["200", "er", "23.10"]]


def test_few_shot_runs_are_shown_with_their_sparsity(tmp_path, capsys):
    config = preset_config(None, "glyphs", "sparse-maml", 5)
    folder = tmp_path / "glyphs-5shot-frozen-mask"
    folder.mkdir()
    settings = {**dataclasses.asdict(config), "mask_lr": 0.0}
    (folder / "config.json").write_text(json.dumps({"config": settings}))
    seed = {"accuracy": 0.78, "sparsity": {"total": 0.4994, "head/bias": 0.0}}
    result = {"accuracy": 0.78, "interval95_over_tasks": 0.0075, "test_tasks": 600, "seeds": [seed]}
    (folder / "result.json").write_text(json.dumps(result))
    row = {"epoch": 0, "step": 0, "sparsity": {"total": 0.5}}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    reproduce.main(["--no-run", "--out", str(tmp_path), "--table", "few-shot"])
    (line,) = table_rows(capsys.readouterr().out)[1:]
    assert line == [
        "glyphs", "5", "mask frozen at random", "78.00 +- 0.75", "600", "50.0 -> 49.9",
        "`--dataset glyphs --shots 5 --method sparse-maml --mask-lr 0`",
    ]  # fmt: skip
