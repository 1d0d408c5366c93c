"""The figures of a run on a switching stream."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.drawing import (
    SHARES,
    Rows,
    Shown,
    band,
    compare_layers,
    draw_layers,
    grid,
    legend_of_runs,
    subplots,
)
from experiments.style import NEUTRAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {"weights": "kernel", "batch-norm gains": "scale", "biases": "bias"}


def draw_online(rows: Rows, result: dict[str, Any]) -> "Figure":
    """The accuracy over all timesteps so far, in total and by dataset."""
    figure, axis = subplots(figsize=(6.4, 4))
    learned = [row for row in rows if row["interval"]]
    _line(axis, learned, [row["accuracy"] for row in learned], "all")
    for name in result["by_dataset"]:
        seen = [row for row in learned if name in row["by_dataset"]]
        _line(axis, seen, [row["by_dataset"][name] for row in seen], name)
    axis.set(
        title="Online accuracy over all timesteps so far",
        xlabel="timesteps", ylabel="online accuracy so far [%]", ylim=SHARES,
    )  # fmt: skip
    axis.legend()
    return figure


def draw_switches(rows: Rows, result: dict[str, Any]) -> "Figure":
    """The mean accuracy before and after a switch of task."""
    figure, axis = subplots(figsize=(6.4, 4))
    curves = [seed["around_switches"] for seed in result["seeds"]]
    by_seed = 100 * np.array([curve["accuracy"] for curve in curves], float).T
    known = ~np.isnan(by_seed).any(1)
    if known.any():
        offsets = np.array(curves[0]["offset"])
        band(axis, offsets[known], by_seed[known], "")
    else:
        axis.text(0.5, 0.5, "no switch", ha="center", transform=axis.transAxes)
    axis.axvline(0, color=NEUTRAL, linewidth=1, zorder=0)
    axis.set(
        title="Accuracy before and after a switch of task",
        xlabel="timesteps after a switch", ylabel="online accuracy [%]", ylim=SHARES,
    )  # fmt: skip
    return figure


def draw_sparsity(rows: Rows, result: dict[str, Any]) -> "Figure":
    """Sparsity by layer over the stream, in percent: weights, biases (the paper's Fig. S5)."""
    return draw_layers(rows, "step", "timesteps", PARTS)


def compare_online(shown: Sequence[Shown]) -> "Figure":
    """Accuracy of several runs over all timesteps so far, in total and by dataset."""
    datasets = dict.fromkeys(name for run in shown for name in run.result["by_dataset"])
    title = "Online accuracy over all timesteps so far"
    figure, axes = grid(1 + len(datasets), title, "accuracy so far [%]")
    for run in shown:
        learned = [row for row in run.rows if row["interval"]]
        _line(axes[0], learned, [row["accuracy"] for row in learned], run.label, **run.look)
        for axis, name in zip(axes[1:], datasets, strict=True):
            seen = [row for row in learned if name in row["by_dataset"]]
            shares = [row["by_dataset"][name] for row in seen]
            _line(axis, seen, shares, run.label, **run.look)
    for axis, title in zip(axes, ("all datasets", *datasets), strict=True):
        axis.set(title=title, xlabel="timesteps", ylim=SHARES)
    legend_of_runs(figure, axes)
    return figure


def compare_sparsity(shown: Sequence[Shown]) -> "Figure":
    """Sparsity of several runs over the stream, a panel for each layer."""
    return compare_layers(shown, "step", "timesteps")


def _line(axis, rows, shares, label, **look):
    """A share over the stream, in percent."""
    if rows:
        values = [100 * np.array(x, float, ndmin=1) for x in shares]
        band(axis, [row["step"] for row in rows], values, label, **look)


FIGURES = {
    "online.png": draw_online,
    "switches.png": draw_switches,
    "sparsity.png": draw_sparsity,
}
CAPTIONS = {
    "online.png": "Online accuracy over all timesteps so far, in total and by dataset.",
    "switches.png": "Online accuracy before and after a switch of task, mean over the switches.",
    "sparsity.png": "Sparsity by layer over the stream: the share of parameters with a step size of"
    " 0.",
}
COMPARED = {"online.png": compare_online, "sparsity.png": compare_sparsity}
