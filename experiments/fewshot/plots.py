"""The figures of a few-shot run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.drawing import (
    Rows,
    Shown,
    band,
    compare_layers,
    draw_layers,
    grid,
    legend_of_runs,
    subplots,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panel of the sparsity figure -> ending of its parameters' names (the paper's Figs. 1 and S1).
PARTS = {"weights": "kernel", "batch-norm gains": "scale", "biases": "bias"}
STEPS = "meta-steps"
# Metric -> its label with the unit, and the factor from the stored value to this unit.
METRICS = {"loss": ("loss after adaptation [nats]", 1), "accuracy": ("accuracy [%]", 100)}


def draw_curves(rows: Rows, _: Any = None) -> "Figure":
    """Loss and accuracy on training and validation tasks over training."""
    figure, axes = subplots(1, 2, figsize=(9, 4))
    for axis, metric in zip(axes, METRICS, strict=True):
        for prefix, label in (("", "training tasks"), ("val_", "validation tasks")):
            draw_metric(axis, rows, prefix + metric, label)
        axis.set(xlabel=STEPS, ylabel=METRICS[metric][0])
    axes[0].legend()
    figure.suptitle("Loss and accuracy after adaptation to a task")
    return figure


def draw_metric(axis: Any, rows: Rows, name: str, label: str, **look: Any) -> None:
    """A metric over training, from the first epoch on."""
    _, factor = METRICS[name.removeprefix("val_")]
    trained = [row for row in rows if row["epoch"]]
    values = [factor * np.array(row[name], float) for row in trained]
    if trained:
        band(axis, [row["step"] for row in trained], values, label, **look)


def draw_sparsity(rows: Rows, _: Any = None) -> "Figure":
    """Sparsity by layer over training, in percent: weights, batch-norm gains, biases."""
    return draw_layers(rows, "step", STEPS, PARTS)


def compare_curves(shown: Sequence[Shown]) -> "Figure":
    """Loss and accuracy of several runs over training."""
    panels = {
        "training tasks, loss": "loss",
        "training tasks, accuracy": "accuracy",
        "validation tasks, accuracy": "val_accuracy",
    }
    figure, axes = grid(len(panels), "Loss and accuracy after adaptation", "", sharey=False)
    for axis, (title, name) in zip(axes, panels.items(), strict=True):
        for run in shown:
            draw_metric(axis, run.rows, name, run.label, **run.look)
        axis.set(title=title, xlabel=STEPS, ylabel=METRICS[name.removeprefix("val_")][0])
    legend_of_runs(figure, axes)
    return figure


def compare_sparsity(shown: Sequence[Shown]) -> "Figure":
    """Sparsity of several runs over training, a panel for each layer."""
    return compare_layers(shown, "step", STEPS)


FIGURES = {"curves.png": draw_curves, "sparsity.png": draw_sparsity}
CAPTIONS = {
    "curves.png": "Loss and accuracy after adaptation, on training and validation tasks, over"
    " training; mean and standard deviation over the seeds.",
    "sparsity.png": "Sparsity by layer over training: the share of weights, batch-norm gains and"
    " biases with a step size of 0.",
}
COMPARED = {"curves.png": compare_curves, "sparsity.png": compare_sparsity}
