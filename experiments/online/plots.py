"""The figures of a run on a switching stream."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.drawing import Rows, band, draw_stream_sparsity, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_online(rows: Rows, result: dict[str, Any]) -> "Figure":
    """The accuracy over all timesteps so far, in total and by dataset."""
    figure, axis = subplots(figsize=(6, 3.6))
    learned = [row for row in rows if row["interval"]]
    _line(axis, learned, [row["accuracy"] for row in learned], "all")
    for name in result["by_dataset"]:
        seen = [row for row in learned if name in row["by_dataset"]]
        _line(axis, seen, [row["by_dataset"][name] for row in seen], name)
    axis.set(xlabel="timesteps", ylabel="online accuracy so far [%]", ylim=(0, 101))
    axis.legend(frameon=False)
    return figure


def draw_switches(rows: Rows, result: dict[str, Any]) -> "Figure":
    """The mean accuracy before and after a switch of task."""
    figure, axis = subplots(figsize=(5.4, 3.6))
    curves = [seed["around_switches"] for seed in result["seeds"]]
    by_seed = 100 * np.array([curve["accuracy"] for curve in curves], float).T
    known = ~np.isnan(by_seed).any(1)
    if known.any():
        offsets = np.array(curves[0]["offset"])
        band(axis, offsets[known], by_seed[known], "")
    else:
        axis.text(0.5, 0.5, "no switch", ha="center", transform=axis.transAxes)
    axis.axvline(0, color="0.7", linewidth=1, zorder=0)
    axis.set(xlabel="timesteps after a switch", ylabel="online accuracy [%]", ylim=(0, 101))
    return figure


def draw_sparsity(rows: Rows, result: dict[str, Any]) -> "Figure":
    """Sparsity by layer over the stream, in percent: weights, biases (the paper's Fig. S5)."""
    return draw_stream_sparsity(rows, "step", "timesteps", "no learned gate")


def _line(axis, rows, shares, label):
    """A share over the stream, in percent."""
    if rows:
        band(
            axis,
            [row["step"] for row in rows],
            [100 * np.array(x, float, ndmin=1) for x in shares],
            label,
        )


FIGURES = {
    "online.png": draw_online,
    "switches.png": draw_switches,
    "sparsity.png": draw_sparsity,
}
