"""Tables 3, S5 and S6 and Figures 3, S3 and S4: learning on streams of digits."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import continual, published
from experiments.continual.scan import Grid
from experiments.drawing import band, own_style, rendered, subplots, write
from experiments.report import percent, with_std
from experiments.tables.flags import Flags
from experiments.tables.markdown import Lines, comparison, header, row, seeds
from experiments.tables.runner import Runner
from jaxsparse.training import writing
from jaxsparse.training.continual import ContinualConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STREAMS = ("rotations", "permutations", "many-permutations")
METHODS = (
    *("sparse-lamaml", "lamaml", "sync-lamaml", "cmaml-sync"),
    *("er", "mer", "gem", "agem", "sgd", "iid"),
)
INNER_RATES = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
WIDTHS = (25, 50, 100, 200, 400)
_WIDTH = 100  # the published one
_SPARSE = ("lamaml", "sparse-lamaml")
_TENSORS = (
    *("dense1/kernel", "dense2/kernel", "head/kernel"),
    *("dense1/bias", "dense2/bias", "head/bias"),
)
_SUMMARIES = (
    ("RA", "retained_accuracy"),
    ("BTI", "backward_transfer_interference"),
    ("LA", "learning_accuracy"),
    ("forward", "forward_transfer"),
)
# Ours may be this far from the paper's, in points, or as far as the seeds are from each other.
_NEAR = 3.0


def accuracies(flags: Flags, runner: Runner) -> Lines:
    """RA, BTI, LA and forward transfer of every method on every stream of digits."""
    lines, results = [], {}
    for stream in flags.streams:
        lines += [f"**{stream}**, {seeds(flags.seeds)}:", ""]
        lines += header("method", *(label for label, _ in _SUMMARIES), "sparsity", "command")
        for method in flags.methods or METHODS:
            result = runner.result(
                continual, f"{stream}-{method}", cell_config(flags, stream, method)
            )
            if result is None:
                continue
            results[stream, method] = result
            cells = [with_std(result[name]) for _, name in _SUMMARIES]
            sparsity = result["sparsity"].get("total")
            cells.append(with_std(sparsity) if sparsity else "-")
            lines.append(row(method, *cells, f"`{_command(flags, stream, method)}`"))
        lines += ["", *_comparisons(stream, results), ""]
    return lines


def sparsities(flags: Flags, runner: Runner) -> Lines:
    """Table S5: the sparsity at the end of the stream, by tensor."""
    lines = [f"Final sparsity in %, ours ({seeds(flags.seeds)}) / the paper's.", ""]
    lines += header("stream", "method", "overall", *_TENSORS, "overall within the spread or 3")
    for stream, method, settings in _sparsity_runs(flags):
        result = runner.result(continual, *_run(flags, stream, method, **settings))
        if result is None:
            continue
        paper = published.TABLE_S5[stream, method]
        label = " ".join([method, *(f"({n} {v:g})" for n, v in settings.items())])
        cells = [
            f"{with_std(result['sparsity'][name])} / {paper[name].mean:g}"
            for name in ("total", *_TENSORS)
        ]
        lines.append(row(stream, label, *cells, _verdict(result["sparsity"], paper)))
    return lines


def _sparsity_runs(flags):
    """Stream, method and settings beside the published ones, of each row of Table S5."""
    for stream in flags.streams:
        for method in _SPARSE:
            yield stream, method, {}
        if stream == "many-permutations":
            # What Table S6 names, where the public code of La-MAML has 0.1.
            yield stream, "lamaml", {"mask_lr": 0.3}


def settings(flags: Flags, runner: Runner) -> Lines:
    """Table S6: the rates and glances that retain most on held-out images, beside the paper's.

    What is chosen so is then run on all seeds, and measured on the test images.
    """
    lines = [
        "Chosen on training images held out (seed 0), beside the paper's choice; RA of what was"
        f" chosen, on test images, {seeds(flags.seeds)}:",
        "",
    ]
    lines += header("stream", "method", "alpha_0, gamma_m, glances", "RA held out", "RA", "paper",
                     "RA held out, paper's choice")  # fmt: skip
    comparisons = []
    for stream in flags.streams:
        results: dict[str, Any] = {}
        for method in _SPARSE:
            paper = published.TABLE_S6[stream, method]
            scanned = _scanned(flags, runner, stream, method)
            if scanned is None:
                continue
            (alpha, gamma, glances), points = scanned
            results[method] = runner.result(continual, *_run(
                flags, stream, method, inner_lr=alpha, mask_lr=gamma, glances=glances
            ))  # fmt: skip
            lines.append(row(
                stream, method, f"{alpha:g}, {gamma:g}, {glances}",
                _retained(points, alpha, gamma, glances),
                "-" if results[method] is None else with_std(results[method]["retained_accuracy"]),
                ", ".join(f"{value:g}" for value in paper), _retained(points, *paper),
            ))  # fmt: skip
        if all(results.get(method) for method in _SPARSE):
            comparisons.append(comparison(
                f"{stream}, as chosen: RA of sparse-lamaml is {{}} lamaml's", "retained_accuracy",
                results["sparse-lamaml"]["seeds"], results["lamaml"]["seeds"],
            ))  # fmt: skip
    return [*lines, "", *comparisons]


def _scanned(flags, runner, stream, method):
    """alpha_0, gamma_m and glances as a scan chooses them, and what each point retained."""
    config = dataclasses.replace(cell_config(flags, stream, method), seeds=1)
    grid = Grid(
        inner_lr=(0.05, 0.1, 0.15),
        mask_lr=(0.1, 0.3, 0.5) if method == "lamaml" else (0.75, 1.7, 3.0),
        glances=(5, 10),
    )
    scanned = runner.scan(f"settings-{stream}-{method}", config, grid)
    if scanned is None:
        return None
    chosen, points = scanned
    return (chosen.inner_lr, chosen.mask_lr, chosen.glances), points


def figure_s3(flags: Flags, runner: Runner) -> Lines:
    """RA and sparsity against alpha_0, of La-MAML and sparse-La-MAML; drawn."""
    lines: list[str] = []
    curves: dict[tuple[str, str, float], dict[str, Any]] = {}
    for stream in flags.streams:
        lines += [f"**{stream}**, {seeds(flags.seeds)}:", ""]
        table, found = _swept(flags, runner, stream, "inner_lr", INNER_RATES, _PANELS)
        lines += header("alpha_0", *(f"{m}, {what}" for m in _SPARSE for what in _PANELS))
        lines += [*table, ""]
        curves |= found
    runner.check_found()
    _save(lambda: _draw_s3(flags, curves), runner, "figure-s3.png")
    return [*lines, f"Figure: {runner.pictures / 'figure-s3.png'}"]


def figure_3(flags: Flags, runner: Runner) -> Lines:
    """Rotations: sparsity by task, and its end against the width of the layers; drawn."""
    return _by_width(flags, runner, ("rotations",), _PANELS[1:], "figure-3.png")


def figure_s4(flags: Flags, runner: Runner) -> Lines:
    """Permuted streams: sparsity by task, and RA and sparsity against the width; drawn."""
    return _by_width(flags, runner, STREAMS[1:], _PANELS, "figure-s4.png")


def _swept(flags, runner, stream, setting, values, panels):
    """A row for each value of a setting, and the results by (stream, method, value)."""
    rows, found = [], {}
    for value in values:
        cells = []
        for method in _SPARSE:
            run = _run(flags, stream, method, **{setting: value})
            result = runner.result(continual, *run)
            if result is not None:
                found[stream, method, value] = result
            cells += _cells(result, panels)
        rows.append(row(f"{value:g}", *cells))
    return rows, found


def _by_width(flags, runner, streams, panels, name):
    """Tables of what is measured at each width, and the figure with the sparsity by task."""
    lines: list[str] = []
    ends: dict[tuple[str, str, float], dict[str, Any]] = {}
    by_task = {}
    for stream in streams:
        lines += [f"**{stream}**, in %, {seeds(flags.seeds)}:", ""]
        table, found = _swept(flags, runner, stream, "width", WIDTHS, panels)
        lines += header("width", *(f"{m}, {what}" for m in _SPARSE for what in panels))
        lines += [*table, ""]
        ends |= found
        for method in _SPARSE:
            if (stream, method, _WIDTH) in ends:
                by_task[stream, method] = runner.rows(
                    continual, f"{stream}-{method}", "task", "sparsity"
                )
    runner.check_found()
    _save(lambda: _draw_by_width(streams, panels, by_task, ends), runner, name)
    return [*lines, f"Figure: {runner.pictures / name}"]


def _cells(result, panels):
    if result is None:
        return ["-"] * len(panels)
    return [with_std(_MEASURES[panel](result)) for panel in panels]


_MEASURES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "RA": lambda result: result["retained_accuracy"],
    "sparsity": lambda result: result["sparsity"]["total"],
}
_PANELS = tuple(_MEASURES)


def _draw_s3(flags, curves) -> "Figure":
    figure, axes = subplots(
        2, len(flags.streams), figsize=(4 * len(flags.streams), 5.6), sharex=True,
        squeeze=False,
    )  # fmt: skip
    for column, stream in zip(axes.T, flags.streams, strict=True):
        for panel, axis in zip(_PANELS, column, strict=True):
            _against(axis, panel, stream, INNER_RATES, curves)
            axis.set(xscale="log")
        column[0].set(title=stream)
        column[1].set(xlabel="alpha_0")
    axes[0, 0].legend(frameon=False, fontsize="small")
    return figure


def _draw_by_width(streams, panels, by_task, ends) -> "Figure":
    """A row for each stream: the sparsity by task of each method, then the panels by width."""
    columns = len(_SPARSE) + len(panels)
    figure, axes = subplots(
        len(streams), columns, figsize=(4 * columns, 0.6 + 3.1 * len(streams)),
        squeeze=False,
    )  # fmt: skip
    for line, stream in zip(axes, streams, strict=True):
        for axis, method in zip(line, _SPARSE, strict=False):
            _draw_by_task(axis, by_task.get((stream, method), ()))
            axis.set(title=f"{stream}, {method}")
        for axis, panel in zip(line[len(_SPARSE) :], panels, strict=True):
            _against(axis, panel, stream, WIDTHS, ends)
            axis.set(title=stream, xlabel="width of the hidden layers", xscale="log")
            axis.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
            axis.minorticks_off()
    axes[0, -1].legend(frameon=False, fontsize="small")
    # Below the panels: within them it would lie on the curves.
    labelled = next((axis for axis in axes.flat if axis.get_legend_handles_labels()[0]), axes[0, 0])
    figure.legend(
        *labelled.get_legend_handles_labels(), loc="outside lower left", ncols=1 + len(_TENSORS),
        frameon=False, fontsize="small",
    )  # fmt: skip
    return figure


def _draw_by_task(axis, rows):
    for name in ("total", *_TENSORS) if rows else ():
        values = [100 * np.array(row["sparsity"][name], float, ndmin=1) for row in rows]
        band(axis, [row["task"] for row in rows], values, name)
    axis.set(xlabel="tasks learned", ylabel="sparsity [%]", ylim=(-2, 102))


def _against(axis, panel, stream, places, results):
    """A measure of each method in percent, with the deviation over seeds; a gap where no run is."""
    gap: dict[str, Any] = {"mean": math.nan, "std": None}
    for method in _SPARSE:
        there = [results.get((stream, method, place)) for place in places]
        shares = [gap if result is None else _MEASURES[panel](result) for result in there]
        axis.errorbar(
            places, [100 * share["mean"] for share in shares],
            [100 * (share["std"] or 0) for share in shares],
            label=method, marker="o", markersize=3, capsize=2,
        )  # fmt: skip
    axis.set(ylabel=f"{panel} [%]", xlim=(0.8 * places[0], 1.25 * places[-1]))


def _save(draw, runner, name):
    """Draw into the folder of the figures."""
    with own_style():
        picture = rendered(draw())
    with writing(runner.pictures):
        runner.pictures.mkdir(parents=True, exist_ok=True)
    write(picture, runner.pictures / name)


def _comparisons(stream, results):
    """Whether sparse-La-MAML retains more than La-MAML and ER."""
    ours = results.get((stream, "sparse-lamaml"))
    found = {other: results.get((stream, other)) for other in ("lamaml", "er")}
    return [
        comparison(
            f"RA of sparse-lamaml is {{}} {other}'s",
            "retained_accuracy", ours["seeds"], theirs["seeds"],
        )
        for other, theirs in found.items() if ours is not None and theirs is not None
    ]  # fmt: skip


def _verdict(sparsity, paper):
    ours, theirs = sparsity["total"], paper["total"]
    distance = abs(100 * ours["mean"] - theirs.mean)
    near = distance <= max(_NEAR, 100 * (ours["std"] or 0))
    note = f" ({theirs.note})" if theirs.note else ""
    return f"{'yes' if near else 'no'}, {distance:.1f} apart{note}"


def _retained(points, inner_lr, mask_lr, glances):
    for point in points:
        if (point["inner_lr"], point["mask_lr"], point["glances"]) == (inner_lr, mask_lr, glances):
            return percent(point["retained_accuracy"]["mean"])
    return "not in the grid"


def _command(flags, stream, method):
    return f"--stream {stream} --method {method} --seeds {flags.seeds}"


def _run(flags, stream, method, **settings):
    """The name of a run, which tells what differs from the published settings, and the run."""
    preset = cell_config(flags, stream, method)
    marks = [
        f"{_MARKS.get(name, name)}-{value:g}"
        for name, value in settings.items()
        if value != getattr(preset, name)
    ]
    return "-".join([stream, method, *marks]), dataclasses.replace(preset, **settings)


_MARKS = {"inner_lr": "alpha"}


def cell_config(flags: Flags, stream: str, method: str, **settings: Any) -> ContinualConfig:
    """The published settings of a method on a stream, with the flags' seeds unless given."""
    config = continual.preset_config(stream, method, memories=settings.get("memories", 0))
    if "seeds" not in settings:
        settings["seeds"] = flags.seeds
    return dataclasses.replace(config, data_dir=flags.data_dir, **settings)
