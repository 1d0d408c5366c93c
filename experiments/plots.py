"""The figures of a run, from its metrics.

python -m experiments.plots runs/fewshot/...
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments import cli

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

# Which panel of the sparsity figure a leaf belongs to: the paper's Figs. 1 and S1.
_PANELS = {
    "weights": lambda name: name.endswith("kernel"),
    "batch-norm gains": lambda name: name.endswith("scale"),
    "biases": lambda name: name.endswith("bias"),
}


def draw_run(
    path: Path, figures: Mapping[str, Callable[..., Figure]], rows: Rows, result: Any
) -> None:
    """Write the figures, file name -> `(rows, result) -> figure`, into the folder of a run."""
    for name, draw in figures.items():
        figure = draw(rows, result)
        figure.savefig(path / name, dpi=150)
        plt.close(figure)


def draw_curves(rows: Rows, _: Any = None) -> Figure:
    """Loss and accuracy over training, of training and validation tasks."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
        for prefix, label in (("", "training tasks"), ("val_", "validation tasks")):
            trained = [row for row in rows if row["epoch"]]
            steps = [row["step"] for row in trained]
            band(axis, steps, [row[prefix + metric] for row in trained], label)
        axis.set(xlabel="meta-steps", ylabel=f"{metric} after adaptation")
    axes[0].legend(frameon=False)
    return figure


def draw_sparsity(rows: Rows, _: Any = None) -> Figure:
    """Sparsity by layer over training, in percent: weights, batch-norm gains, biases."""
    names = [name for name in rows[0]["sparsity"] if name != "total"]
    panels = {
        title: [name for name in names if belongs(name)] for title, belongs in _PANELS.items()
    }
    panels = {title: members for title, members in panels.items() if members}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 4.2), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis, (title, members) in zip(axes[0], panels.items(), strict=True):
        for name in members:
            values = [100 * np.asarray(row["sparsity"][name]) for row in rows]
            band(axis, [row["step"] for row in rows], values, name.rsplit("/", 1)[0])
        axis.set(title=title, xlabel="meta-steps", ylim=(-2, 102))
        # Below the axes: lines end in every corner.
        axis.legend(
            frameon=False,
            fontsize="small",
            ncols=3,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
        )
    axes[0, 0].set_ylabel("sparsity [%]")
    return figure


def band(axis: Any, steps: Any, values: Any, label: str) -> None:
    """A line through the means over seeds, with one standard deviation around it."""
    from jaxsparse.training.statistics import mean_and_std

    by_seed = np.array([np.atleast_1d(value) for value in values], float)
    spreads = [mean_and_std(of_step) for of_step in by_seed]
    mean = np.array([spread["mean"] for spread in spreads])
    (line,) = axis.plot(steps, mean, label=label, marker="o", markersize=2.5)
    if by_seed.shape[1] > 1:
        std = np.array([spread["std"] for spread in spreads])
        axis.fill_between(steps, mean - std, mean + std, color=line.get_color(), alpha=0.2)


FIGURES = {"curves.png": draw_curves, "sparsity.png": draw_sparsity}


def main() -> None:
    """Draw the figures of the run folders that are named."""
    from experiments import online_plots, stream_plots
    from jaxsparse.training import RunError, RunFolder

    with cli.one_line_errors():
        if len(sys.argv) < 2:
            cli.fail("usage: python -m experiments.plots RUN [RUN ...]")
        for name in sys.argv[1:]:
            folder = RunFolder(Path(name))
            rows, result = folder.rows(), folder.result()
            units = {
                unit for row in rows for unit in ("epoch", "task", "interval") if row.get(unit)
            }
            if "epoch" in units:
                figures = FIGURES
            elif result is not None and units:
                figures = {"task": stream_plots, "interval": online_plots}[units.pop()].FIGURES
            else:
                raise RunError(f"{name} holds no metrics of any epoch, nor a stream's result")
            draw_run(Path(name), figures, rows, result)
            print(f"{name}: {', '.join(figures)}")


if __name__ == "__main__":
    main()
