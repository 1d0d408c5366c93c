"""Figures 3, S3 and S4: sparsity and accuracy on streams of digits, as tables and figures."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from experiments import continual
from experiments.drawing import SHARES, draw_sparsities, legend_below, rendered, subplots, write
from experiments.report import with_std
from experiments.style import looks, own_style
from experiments.tables.continual import SPARSE, STREAMS, TENSORS, named_run
from experiments.tables.flags import Flags
from experiments.tables.markdown import Lines, header, row, seeds
from experiments.tables.runner import Runner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INNER_RATES = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
_LABELLED_RATES = (0.01, 0.03, 0.1, 0.3)  # the others have no room for a label
WIDTHS = (25, 50, 100, 200, 400)
_WIDTH = 100  # the published one
_MEASURES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "RA": lambda result: result["retained_accuracy"],
    "sparsity": lambda result: result["sparsity"]["total"],
}
_PANELS = tuple(_MEASURES)
_LABELS = {"RA": "retained accuracy RA [%]", "sparsity": "sparsity [%]"}


def figure_s3(flags: Flags, runner: Runner) -> Lines:
    """RA and sparsity of La-MAML and sparse-La-MAML against alpha_0."""
    lines: list[str] = []
    curves: dict[tuple[str, str, float], dict[str, Any]] = {}
    for stream in flags.streams:
        lines += [f"**{stream}**, {seeds(flags.seeds)}:", ""]
        table, found = _swept(flags, runner, stream, "inner_lr", INNER_RATES, _PANELS)
        lines += header("alpha_0", *(f"{m}, {what}" for m in SPARSE for what in _PANELS))
        lines += [*table, ""]
        curves |= found
    runner.check_found()
    save(lambda: _draw_s3(flags, curves), runner, "figure-s3.png")
    return [*lines, f"Figure: {runner.pictures / 'figure-s3.png'}"]


def figure_3(flags: Flags, runner: Runner) -> Lines:
    """Rotations: sparsity by task, and final sparsity against the width of the layers."""
    return _by_width(flags, runner, ("rotations",), _PANELS[1:], "figure-3.png")


def figure_s4(flags: Flags, runner: Runner) -> Lines:
    """Permuted streams: sparsity by task, and final RA and sparsity against the width."""
    return _by_width(flags, runner, STREAMS[1:], _PANELS, "figure-s4.png")


def _swept(flags, runner, stream, setting, values, panels):
    """A row for each value of a setting, and the results by (stream, method, value)."""
    rows, found = [], {}
    for value in values:
        cells = []
        for method in SPARSE:
            run = named_run(flags, stream, method, **{setting: value})
            result = runner.result(continual, *run)
            if result is not None:
                found[stream, method, value] = result
            cells += _cells(result, panels)
        rows.append(row(f"{value:g}", *cells))
    return rows, found


def _by_width(flags, runner, streams, panels, name):
    """Tables by width, and the figure with sparsity by task."""
    lines: list[str] = []
    ends: dict[tuple[str, str, float], dict[str, Any]] = {}
    by_task = {}
    for stream in streams:
        lines += [f"**{stream}**, in %, {seeds(flags.seeds)}:", ""]
        table, found = _swept(flags, runner, stream, "width", WIDTHS, panels)
        lines += header("width", *(f"{m}, {what}" for m in SPARSE for what in panels))
        lines += [*table, ""]
        ends |= found
        for method in SPARSE:
            if (stream, method, _WIDTH) in ends:
                by_task[stream, method] = runner.rows(
                    continual, f"{stream}-{method}", "task", "sparsity"
                )
    runner.check_found()
    save(lambda: _draw_by_width(streams, panels, by_task, ends), runner, name)
    return [*lines, f"Figure: {runner.pictures / name}"]


def _cells(result, panels):
    if result is None:
        return ["-"] * len(panels)
    return [with_std(_MEASURES[panel](result)) for panel in panels]


def _draw_s3(flags, curves) -> "Figure":
    figure, axes = subplots(
        2, len(flags.streams), figsize=(4 * len(flags.streams), 6), sharex=True,
        sharey="row", squeeze=False,
    )  # fmt: skip
    for column, stream in zip(axes.T, flags.streams, strict=True):
        for panel, axis in zip(_PANELS, column, strict=True):
            _against(axis, panel, stream, INNER_RATES, curves)
            axis.set(xscale="log")
            axis.label_outer()
        column[0].set(title=stream)
        column[1].set(xlabel="initial step size alpha_0")
        column[1].set_xticks(_LABELLED_RATES, [f"{rate:g}" for rate in _LABELLED_RATES])
        column[1].minorticks_off()
    axes[0, 0].legend()
    figure.suptitle("Accuracy and sparsity against the initial step size")
    return figure


def _draw_by_width(streams, panels, by_task, ends) -> "Figure":
    """A row for each stream: the sparsity by task of each method, then the panels by width."""
    columns = len(SPARSE) + len(panels)
    figure, axes = subplots(
        len(streams), columns, figsize=(4 * columns, 1.2 + 3.4 * len(streams)),
        squeeze=False,
    )  # fmt: skip
    for line, stream in zip(axes, streams, strict=True):
        for axis, method in zip(line, SPARSE, strict=False):
            _draw_by_task(axis, by_task.get((stream, method), ()))
            axis.set(title=f"{stream},\n{method}")
        for axis, panel in zip(line[len(SPARSE) :], panels, strict=True):
            _against(axis, panel, stream, WIDTHS, ends)
            axis.set(
                title=f"{stream},\nend of the stream",
                xlabel="width of the hidden layers",
                xscale="log",
            )
            axis.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
            axis.minorticks_off()
    axes[0, -1].legend()
    figure.suptitle("Sparsity over the stream, and at its end against the width")
    legend_below(figure, axes[:, : len(SPARSE)].flat, 1 + len(TENSORS))
    return figure


def _draw_by_task(axis, rows):
    if rows:
        names = ("total", *TENSORS)
        draw_sparsities(axis, rows, "task", {name: name for name in names}, looks(names))
    axis.set(xlabel="tasks learned", ylabel="sparsity [%]", ylim=SHARES)


def _against(axis, panel, stream, places, results):
    """A measure of each method in percent, with the std over seeds; missing runs are gaps."""
    gap: dict[str, Any] = {"mean": math.nan, "std": None}
    for method in SPARSE:
        found = [results.get((stream, method, place)) for place in places]
        shares = [gap if result is None else _MEASURES[panel](result) for result in found]
        axis.errorbar(
            places, [100 * share["mean"] for share in shares],
            [100 * (share["std"] or 0) for share in shares],
            label=method,
        )  # fmt: skip
    axis.set(ylabel=_LABELS[panel], xlim=(0.8 * places[0], 1.25 * places[-1]))


def save(draw: "Callable[[], Figure]", runner: Runner, name: str) -> None:
    """Draw a figure and write it into the folder of the figures."""
    with own_style():
        picture = rendered(draw())
    write(picture, runner.pictures / name, make_folder=True)
