"""Figures that compare runs, their labels, and where they go; and the style of all figures."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import RUNS, continual_run, fewshot_run, online_run
from PIL import Image
from small_runs import refused

from experiments import continual, drawing, fewshot, online, plots, style
from experiments.comparison import labels_of, read_run


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels(*names):
    return labels_of([read_run(name, Path(name)) for name in names])


def shown(*names):
    looks = style.lines()
    found = [read_run(str(name), name) for name in names]
    return [
        drawing.Shown(label, run.rows, run.result, look)
        for label, run, look in zip(labels_of(found), found, looks, strict=False)
    ]


def lines_of(axis):
    return {line.get_label(): line.get_xydata() for line in axis.lines}


def size(path):
    with Image.open(path) as picture:
        return picture.size


# ---- labels


def test_a_label_says_what_differs(place):
    fewshot_run(place / "a")
    fewshot_run(place / "b", method="fomaml", inner_lr=0.1)
    fewshot_run(place / "c", bias=False)
    assert labels("a", "b", "c") == ["sparse-maml", "fomaml, inner_lr 0.1", "sparse-maml, no bias"]


def test_what_a_preset_sets_is_said_where_nothing_else_differs(place):
    fewshot_run(place / "a")
    fewshot_run(place / "b", inner_lr=0.1)
    assert labels("a", "b") == ["inner_lr 0.4", "inner_lr 0.1"]


def test_a_setting_that_is_not_read_is_no_difference(place):
    fewshot_run(place / "a", embedding=7)  # read by sparse-MAML+ only
    fewshot_run(place / "b", data_dir="/elsewhere")
    assert labels("a", "b") == ["a", "b"]


def test_equal_settings_have_the_names_of_their_folders(place):
    fewshot_run(place / "a")
    fewshot_run(place / "b", finished=False)
    fewshot_run(place / "c", shots=1)
    assert labels("a", "b", "c") == ["shots 5, a", "shots 5, b (unfinished)", "shots 1"]


# ---- what is drawn


def test_curves_have_a_band_of_the_sample_std(place):
    fewshot_run(place / "a")
    fewshot_run(place / "b", method="fomaml")
    figure = fewshot.COMPARED["curves.png"](shown(place / "a", place / "b"))
    axis = figure.axes[2]
    assert axis.get_title() == "validation tasks, accuracy" and axis.get_ylabel() == "accuracy [%]"
    drawn = lines_of(axis)
    # Seeds 0 and 1: 10 i % and 10 i + 10 %.
    assert np.allclose(drawn["sparse-maml"], [[10, 15], [20, 25], [30, 35]])
    heights = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(35 + 10 / 2**0.5)


def test_a_run_has_one_look_in_all_panels(place):
    fewshot_run(place / "a")
    fewshot_run(place / "b", method="fomaml")
    for draw in fewshot.COMPARED.values():
        figure = draw(shown(place / "a", place / "b"))
        for axis in figure.axes:
            found = [(line.get_color(), line.get_marker()) for line in axis.lines]
            assert found == list(zip(style.PALETTE, style.MARKERS, strict=True))[:2]


def test_the_end_of_a_stream_is_compared_by_task(place):
    continual_run(place / "a")
    continual_run(place / "b", method="er")
    figure = continual.COMPARED["accuracy.png"](shown(place / "a", place / "b"))
    now, so_far, end = (lines_of(axis)["sparse-lamaml"][:, 1] for axis in figure.axes)
    assert np.allclose(now, [80, 80, 60])
    assert np.allclose(so_far, [80, 75, 50])
    assert np.allclose(end, [40, 50, 60])


def test_online_accuracy_is_compared_by_dataset(place):
    online_run(place / "a")
    online_run(place / "b", method="bgd")
    figure = online.COMPARED["online.png"](shown(place / "a", place / "b"))
    assert [axis.get_title() for axis in figure.axes] == ["all datasets", "latin", "greek"]
    total, _, greek = (lines_of(axis)["bgd"] for axis in figure.axes)
    assert np.allclose(total, [[50, 15], [100, 30], [150, 45]])
    assert np.allclose(greek, [[100, 35], [150, 35]])


# ---- the command


@pytest.mark.parametrize("name", RUNS)
def test_figures_go_to_a_folder_of_their_own(name, place, capsys):
    RUNS[name](place / "a")
    RUNS[name](place / "b")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    plots.main(["a", "b"])
    *headlines, last = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in headlines] == ["a", "b"] and "+-" in headlines[0]
    (folder,) = (place / "runs/plots").iterdir()
    family = {"fewshot": fewshot, "continual": continual, "online": online}[name]
    assert {path.name for path in folder.iterdir()} == {*family.COMPARED}
    assert all(drawing.is_whole(path) for path in folder.iterdir())
    assert last.startswith("figures: runs/plots/")
    assert all(path.read_bytes() == content for path, content in before.items())
    plots.main(["a", "b"])  # again: in the same folder
    assert list((place / "runs/plots").iterdir()) == [folder]


def test_one_file_has_all_figures_below_each_other(place):
    fewshot_run(place / "a")
    fewshot_run(place / "b", inner_lr=0.1)
    plots.main(["a", "b", "--out=new/all.png"])
    plots.main(["a", "b", "--out=apart"])
    widths, heights = zip(*(size(place / "apart" / name) for name in fewshot.COMPARED), strict=True)
    assert size(place / "new/all.png") == (max(widths), sum(heights))


@pytest.mark.parametrize("content", [b"", b"my notes", "picture", "other runs"])
def test_other_files_are_not_replaced(content, place, capsys):
    for name in "abc":
        fewshot_run(place / name)
    path = place / "out.png"
    if content == "picture":
        Image.new("RGB", (2, 2)).save(path)
    elif content == "other runs":
        plots.main(["a", "c", "--out=out.png"])
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    line = refused(capsys, plots.main, ["a", "b", "--out=out.png"])
    assert "out.png is not a figure of these runs; name another --out" in line
    assert path.read_bytes() == before


def test_runs_that_cannot_be_compared_are_one_line(place, capsys):
    fewshot_run(place / "a")
    fewshot_run(place / "b")
    continual_run(place / "c")
    continual_run(place / "short", finished=False)
    (place / "file").write_text("")
    for flags, message in (
        (["a", "c"], "want runs of one family, got a (fewshot) and c (continual)"),
        (["a", "./a"], "want different runs, got a and ./a"),
        (["c", "short"], "short has neither metrics of an epoch nor the result of a stream"),
        (["a", "nowhere"], "nowhere holds no run"),
        (["a", "b", "--out=x.pdf"], "--out must be a folder or a file that ends in .png"),
        (["a", "b", "--out="], "--out must be a folder or a .png file, got ''"),
        (["a", "b", "--out=https://x/y"], "--out: https://x/y is a URL"),
        (["a", "--out=x"], "--out is read only with several runs"),
        (["a", "b", "--all"], "unrecognized arguments: --all"),
    ):
        assert message in refused(capsys, plots.main, flags)
    assert not (place / "runs").exists() and not (place / "x").exists()


def test_a_place_that_cannot_be_written_is_one_line(place, capsys):
    fewshot_run(place / "a")
    fewshot_run(place / "b")
    (place / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        plots.main(["a", "b", "--out=file/inside"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code in (1, 2) and "file/inside" in line
    (place / "loop").symlink_to("loop")
    for out in ("file", "loop", f"{300 * 'a'}.png"):
        assert out in refused(capsys, plots.main, ["a", "b", f"--out={out}"])


def test_a_picture_that_cannot_be_opened_is_not_replaced(place, capsys, monkeypatch):
    """One too large for Pillow, and a pipe, which never ends."""
    fewshot_run(place / "a")
    fewshot_run(place / "b")
    Image.new("RGB", (60, 60)).save(place / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    os.mkfifo(place / "pipe.png")
    for name in ("large.png", "pipe.png"):
        assert "is not a figure" in refused(capsys, plots.main, ["a", "b", f"--out={name}"])


def test_a_damaged_run_is_one_line(place, capsys):
    fewshot_run(place / "a")
    run = fewshot_run(place / "b")
    row = {"epoch": 4, "step": 40, "sparsity": {}}
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert "curves.png is not drawn" in refused(capsys, plots.main, ["a", "b"])
    (run.path / "metrics.jsonl").write_text("{}\n")
    assert "b/metrics.jsonl cannot be read" in refused(capsys, plots.main, ["a", "b"])


def test_a_dollar_sign_begins_no_formula(place):
    fewshot_run(place / "$a^b$")
    fewshot_run(place / "$\\bad{$")
    plots.main(["$a^b$", "$\\bad{$"])


# ---- style


def test_lines_differ_in_more_than_colour():
    looks = list(style.lines())
    assert len({tuple(look.items()) for look in looks}) == 28
    for count in range(2, 8):
        assert len({look["marker"] for look in looks[:count]}) == count


def test_colours_differ_for_colour_blind_readers():
    """Red-green blindness, by the matrices of Machado et al. (2009) at full severity."""
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
              [-0.003882, -0.048116, 1.051998]]  # fmt: skip
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
              [-0.011820, 0.042940, 0.968881]]  # fmt: skip
    codes = [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in style.PALETTE]
    linear = np.array(codes) ** 2.2
    for matrix in (np.eye(3), protan, deutan):
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert apart[~np.eye(len(seen), dtype=bool)].min() > 0.1


def test_text_is_legible_at_half_size():
    with style.own_style():
        import matplotlib

        sizes = [matplotlib.rcParams[name] for name in ("xtick.labelsize", "legend.fontsize")]
    assert min(sizes) * style.DPI / 72 / 2 >= 10  # pixels


def test_figures_of_sweeps_have_the_style():
    optuna = pytest.importorskip("optuna")
    from matplotlib import style as styles

    from experiments.sweep import report

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(
        lambda trial: trial.suggest_float("a", 0.01, 1, log=True) + trial.suggest_int("b", 1, 3),
        n_trials=8,
    )
    before = dict(styles.library["ggplot"])
    for draw in (report._importance, report._contour):
        with style.own_style():
            figure = draw([], study)
        # The style that Optuna chooses is grey behind white lines.
        assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)
        assert not figure.axes[0].spines["top"].get_visible()
    assert dict(styles.library["ggplot"]) == before and before
