"""The figures of a few-shot run."""

from typing import TYPE_CHECKING, Any

from experiments.drawing import Rows, band, draw_sparsities, layers, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panel of the sparsity figure -> ending of its parameters' names (the paper's Figs. 1 and S1).
_PANELS = {"weights": "kernel", "batch-norm gains": "scale", "biases": "bias"}


def draw_curves(rows: Rows, _: Any = None) -> "Figure":
    """Loss and accuracy on training and validation tasks over training."""
    figure, axes = subplots(1, 2, figsize=(9, 3.4))
    for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for prefix, label in (("", "training tasks"), ("val_", "validation tasks")):
            trained = [row for row in rows if row["epoch"]]
            steps = [row["step"] for row in trained]
            band(axis, steps, [row[prefix + metric] for row in trained], label)
        axis.set(xlabel="meta-steps", ylabel=f"{metric} after adaptation")
    axes[0].legend(frameon=False)
    return figure


def draw_sparsity(rows: Rows, _: Any = None) -> "Figure":
    """Sparsity by layer over training, in percent: weights, batch-norm gains, biases."""
    of_panels = {title: layers(rows[0]["sparsity"], end) for title, end in _PANELS.items()}
    panels = {title: lines for title, lines in of_panels.items() if lines}
    figure, axes = subplots(
        1, len(panels), figsize=(4 * len(panels), 4.2), sharey=True, squeeze=False
    )
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        draw_sparsities(axis, rows, "step", lines)
        axis.set(title=title, xlabel="meta-steps", ylim=(-2, 102))
        # Below the axes: there is no corner without lines.
        axis.legend(
            frameon=False,
            fontsize="small",
            ncols=3,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
        )
    axes[0, 0].set_ylabel("sparsity [%]")
    return figure


FIGURES = {"curves.png": draw_curves, "sparsity.png": draw_sparsity}
