"""The figures of a run over a stream of tasks."""

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
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {"weights": "kernel", "biases": "bias"}


def draw_accuracy(rows: Rows, result: dict[str, Any]) -> "Figure":
    """Accuracy over the stream: on the newest task, on all tasks so far, on the first task."""
    R = _matrices(result)
    tasks = np.arange(1, R.shape[1] + 1)
    figure, axis = subplots(figsize=(6.4, 4))
    band(axis, tasks, np.diagonal(R, axis1=1, axis2=2).T, "the task just learned")
    so_far = np.array([R[:, i, : i + 1].mean(1) for i in range(len(tasks))])
    if not np.isnan(so_far).any():
        band(axis, tasks, so_far, "all tasks so far")
        band(axis, tasks, R[:, :, 0].T, "the first task")
    else:
        band(axis, tasks, R[:, -1].T, "each task, at the end of the stream")
    axis.set(title="Accuracy over the stream", xlabel="task", ylabel=_accuracy(result), ylim=SHARES)
    whole_numbers(axis.xaxis)
    axis.legend()
    return figure


def draw_matrix(rows: Rows, result: dict[str, Any]) -> "Figure":
    """The accuracy matrix R, mean over seeds: row i is measured after task i."""
    R = _matrices(result).mean(0)
    tasks = len(R)
    figure, axis = subplots(figsize=(6, 5))
    edges = (0.5, tasks + 0.5)
    image = axis.imshow(R, vmin=0, vmax=100, extent=(*edges, *edges[::-1]))
    axis.set(
        title="Accuracy on each task after each task",
        xlabel="accuracy on task", ylabel="after training on task",
    )  # fmt: skip
    axis.grid(False)
    for scale in (axis.xaxis, axis.yaxis):
        whole_numbers(scale)
    figure.colorbar(image, label=_accuracy(result))
    return figure


def draw_sparsity(rows: Rows, result: dict[str, Any]) -> "Figure":
    """Sparsity by layer over the stream, in percent: weights, biases (the paper's Figs. 3, S4)."""
    return draw_layers(rows, "task", "tasks learned", PARTS)


def _accuracy(result: dict[str, Any]) -> str:
    """The label of accuracies: on which images they were measured."""
    return f"{result.get('part', 'test')} accuracy [%]"


def _matrices(result: dict[str, Any]) -> np.ndarray:
    """R in percent, [seeds, T, T]; NaN if not measured."""
    return 100 * np.array([seed["accuracy"] for seed in result["seeds"]], float)


def compare_accuracy(shown: Sequence[Shown]) -> "Figure":
    """Accuracy of several runs over the stream, and on each task at its end."""
    titles = ("the task just learned", "all tasks so far", "each task, at the end of the stream")
    figure, axes = grid(len(titles), "Accuracy over the stream", _accuracy(shown[0].result))
    for run in shown:
        R = _matrices(run.result)
        tasks = np.arange(1, R.shape[1] + 1)
        so_far = [R[:, i, : i + 1].mean(1) for i in range(len(tasks))]
        measures = (np.diagonal(R, axis1=1, axis2=2).T, so_far, R[:, -1].T)
        for axis, values in zip(axes, measures, strict=True):
            band(axis, tasks, values, run.label, **run.look)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="task", ylim=SHARES)
        whole_numbers(axis.xaxis)
    legend_of_runs(figure, axes)
    return figure


def compare_sparsity(shown: Sequence[Shown]) -> "Figure":
    """Sparsity of several runs over the stream, a panel for each layer."""
    return compare_layers(shown, "task", "tasks learned")


FIGURES = {
    "accuracy.png": draw_accuracy,
    "matrix.png": draw_matrix,
    "sparsity.png": draw_sparsity,
}
CAPTIONS = {
    "accuracy.png": "Accuracy over the stream: on the task just learned, on all tasks so far,"
    " on the first task.",
    "matrix.png": "The accuracy matrix: the accuracy on each task (columns) after each task (rows),"
    " mean over the seeds.",
    "sparsity.png": "Sparsity by layer over the stream: the share of weights and biases with a step"
    " size of 0.",
}
COMPARED = {"accuracy.png": compare_accuracy, "sparsity.png": compare_sparsity}
