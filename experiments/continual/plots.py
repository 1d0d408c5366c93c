"""The figures of a run over a stream of tasks."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.drawing import Rows, band, draw_stream_sparsity, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_accuracy(rows: Rows, result: dict[str, Any]) -> "Figure":
    """Accuracy over the stream: on the newest task, on all tasks so far, on the first task."""
    R = _matrices(result)
    tasks = np.arange(1, R.shape[1] + 1)
    figure, axis = subplots(figsize=(6, 3.6))
    band(axis, tasks, np.diagonal(R, axis1=1, axis2=2).T, "the task just learned")
    so_far = np.array([R[:, i, : i + 1].mean(1) for i in range(len(tasks))])
    if not np.isnan(so_far).any():
        band(axis, tasks, so_far, "all tasks so far")
        band(axis, tasks, R[:, :, 0].T, "the first task")
    else:
        band(axis, tasks, R[:, -1].T, "each task, at the end of the stream")
    axis.set(xlabel="task", ylabel="test accuracy [%]", ylim=(0, 101))
    _whole_numbers(axis.xaxis)
    axis.legend(frameon=False)
    return figure


def draw_matrix(rows: Rows, result: dict[str, Any]) -> "Figure":
    """The accuracy matrix R, mean over seeds: row i is measured after task i."""
    R = _matrices(result).mean(0)
    tasks = len(R)
    figure, axis = subplots(figsize=(5.4, 4.6))
    edges = (0.5, tasks + 0.5)
    image = axis.imshow(R, vmin=0, vmax=100, cmap="viridis", extent=(*edges, *edges[::-1]))
    axis.set(xlabel="accuracy on task", ylabel="after training on task")
    for scale in (axis.xaxis, axis.yaxis):
        _whole_numbers(scale)
    figure.colorbar(image, label="test accuracy [%]")
    return figure


def draw_sparsity(rows: Rows, result: dict[str, Any]) -> "Figure":
    """Sparsity by layer over the stream, in percent: weights, biases (the paper's Figs. 3, S4)."""
    return draw_stream_sparsity(rows, "task", "tasks learned", "no gate")


def _whole_numbers(scale):
    from matplotlib.ticker import MaxNLocator

    scale.set_major_locator(MaxNLocator(integer=True))


def _matrices(result: dict[str, Any]) -> np.ndarray:
    """R in percent, [seeds, T, T]; NaN if not measured."""
    return 100 * np.array([seed["accuracy"] for seed in result["seeds"]], float)


FIGURES = {
    "accuracy.png": draw_accuracy,
    "matrix.png": draw_matrix,
    "sparsity.png": draw_sparsity,
}
