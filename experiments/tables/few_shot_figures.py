"""Figures 1, 2, S1 and S2: sparsity over training, and accuracy against K and width."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import fewshot
from experiments.drawing import SHARES, draw_sparsities, layers, legend_below, subplots
from experiments.style import looks
from experiments.tables import figures, scales
from experiments.tables.flags import Flags
from experiments.tables.markdown import Lines, header, row
from experiments.tables.paper_few_shot import cell
from experiments.tables.runner import Runner
from experiments.tables.scales import FIGURE_SHOTS, METHODS, SETTINGS
from experiments.tables.seeds import of_seeds, sparsity
from jaxsparse.training.statistics import mean_and_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = dict[str, Any]
# Title -> ending of the names of its parameters.
_WEIGHTS = {"weights": "kernel"}
_OTHERS = {"batch-norm gains": "scale", "biases": "bias"}
_ROWS = 50
_SWEPT = ("sparse-maml", "fomaml")  # in Figure 2
_SAID = "in %: ours, mean +- std over n seeds (N - 1). The paper has curves, not numbers."


class Trained(NamedTuple):
    """A run of Figure 1: what was given, its result and its rows of metrics."""

    shots: int
    initial: float
    result: Result
    rows: list[dict[str, Any]]


class Curve(NamedTuple):
    """A measure of a method against a setting, in an axis.

    Attributes:
      label: of the line.
      values: place -> the measure of each seed, a share; places without runs are left out.
    """

    label: str
    values: dict[float, list[float]]


class Panel(NamedTuple):
    """An axis with curves: its title, its labels, its curves."""

    title: str
    xlabel: str
    ylabel: str
    curves: tuple[Curve, ...]


def figure_1(flags: Flags, runner: Runner) -> Lines:
    """Sparsity of the weights by layer over training, by initial sparsity."""
    return _over_training(flags, runner, _WEIGHTS, "figure-1.png")


def figure_s1(flags: Flags, runner: Runner) -> Lines:
    """Sparsity of batch-norm gains and biases by layer over training, by initial sparsity."""
    return _over_training(flags, runner, _OTHERS, "figure-s1.png")


def figure_2(flags: Flags, runner: Runner) -> Lines:
    """Accuracy against the number of inner steps."""
    lines, panels = _by_steps(flags, runner)
    return _drawn(runner, lines, "figure-2.png", lambda: draw_panels(panels))


def figure_s2(flags: Flags, runner: Runner) -> Lines:
    """Accuracy against the number of inner steps; accuracy and sparsity against the width."""
    lines, panels = _by_steps(flags, runner)
    more, others = _by_width(flags, runner)
    whole = [line + other for line, other in zip(panels, others, strict=True)]
    return _drawn(runner, [*lines, "", *more], "figure-s2.png", lambda: draw_panels(whole))


def _drawn(runner: Runner, lines: Lines, name: str, draw: "Callable[[], Figure]") -> Lines:
    """The lines of a figure; it is drawn and written."""
    runner.check_found()
    figures.save(draw, runner, name)
    return [*lines, "", f"Figure: {runner.pictures / name}"]


def _over_training(flags: Flags, runner: Runner, parts: dict[str, str], name: str) -> Lines:
    """Figure 1 or S1: the table of the final sparsities, and the figure."""
    (setting,) = SETTINGS["figure 1", flags.scale]
    found = []
    for shots in FIGURE_SHOTS[flags.scale]:
        for initial in scales.INITIAL_SPARSITIES:
            run = setting.run(flags, shots, "sparse-maml", initial_sparsity=initial)
            result = runner.result(fewshot, *run)
            if result is not None:
                found.append(Trained(shots, initial, result, _rows_of(runner, run[0], parts)))
    runner.check_found()
    names = [*found[0].rows[0]["sparsity"]]
    lines = [f"Sparsity and accuracy, {_SAID} {setting.label}, `--scale {flags.scale}`.", ""]
    lines += header("shots", "initial sparsity", "accuracy", "sparsity", *names)
    for one in found:
        frozen = [sparsity(one.result, name) for name in names]
        cells = map(cell, (of_seeds(one.result), sparsity(one.result), *frozen))
        lines.append(row(str(one.shots), f"{100 * one.initial:g}", *cells))
    return _drawn(runner, lines, name, lambda: draw_over_training(found, parts))


def _rows_of(runner: Runner, name: str, parts: dict[str, str]) -> list[dict[str, Any]]:
    """About fifty rows of a run with the sparsities that are drawn; a results file keeps these."""
    rows = runner.rows(fewshot, name, "step", "sparsity")
    # At most 51 rows with the last one: they are not thinned again when a results file is read.
    kept = rows[:: math.ceil((len(rows) - 1) / _ROWS) or 1]
    if kept[-1] is not rows[-1]:
        kept.append(rows[-1])
    wanted = [
        parameter
        for ending in parts.values()
        for parameter in layers(rows[0]["sparsity"], ending).values()
    ]
    thin = [
        {"step": row["step"], "sparsity": {name: row["sparsity"][name] for name in wanted}}
        for row in kept
    ]
    runner.found[name]["rows"] = thin
    return thin


def _by_steps(flags: Flags, runner: Runner) -> tuple[Lines, list[list[Panel]]]:
    """Accuracy against K: a table, and for each number of shots a panel."""
    (setting,) = SETTINGS["figure 2", flags.scale]
    lines = [f"Accuracy against K, {_SAID} {setting.label}, `--scale {flags.scale}`.", ""]
    lines += header("shots", "K", *(METHODS[method] for method in _SWEPT))
    panels = []
    for shots in FIGURE_SHOTS[flags.scale]:
        curves = tuple(Curve(METHODS[method], {}) for method in _SWEPT)
        for steps in scales.STEPS:
            for method, curve in zip(_SWEPT, curves, strict=True):
                run = scales.with_steps(flags, shots, method, steps)
                result = runner.result(fewshot, *run)
                if result is not None:
                    curve.values[steps] = of_seeds(result)
        lines += _rows(shots, scales.STEPS, curves)
        panels.append([Panel(f"{shots}-shot", "inner steps K", "accuracy [%]", curves)])
    return lines, panels


def _by_width(flags: Flags, runner: Runner) -> tuple[Lines, list[list[Panel]]]:
    """Accuracy and sparsity of sparse-MAML against the width: a table, two panels per shots."""
    lines = [f"sparse-MAML against the width of Conv4, {_SAID}", ""]
    lines += header("shots", "width", "accuracy", "sparsity")
    panels = []
    for shots in FIGURE_SHOTS[flags.scale]:
        curves = Curve("accuracy", {}), Curve("sparsity", {})
        for width in scales.WIDTHS:
            run = scales.swept(flags, shots, "sparse-maml", width=width)
            result = runner.result(fewshot, *run)
            if result is not None:
                curves[0].values[width] = of_seeds(result)
                curves[1].values[width] = sparsity(result)
        lines += _rows(shots, scales.WIDTHS, curves)
        panels.append([
            Panel(f"{shots}-shot, sparse-MAML", "width", f"{curve.label} [%]", (curve,))
            for curve in curves
        ])  # fmt: skip
    return lines, panels


def _rows(shots: int, places: Sequence[float], curves: Sequence[Curve]) -> Lines:
    """A row for each place where a curve has a value."""
    return [
        row(str(shots), str(place), *(cell(curve.values.get(place)) for curve in curves))
        for place in places
        if any(place in curve.values for curve in curves)
    ]


def draw_over_training(found: list[Trained], parts: dict[str, str]) -> "Figure":
    """Sparsity by layer: a row for each part and number of shots, a column for each start."""
    lines = [(part, shots) for shots in dict.fromkeys(one.shots for one in found) for part in parts]
    starts = sorted({one.initial for one in found})
    names = {part: layers(found[0].rows[0]["sparsity"], parts[part]) for part in parts}
    of_layers = looks(layer for named in names.values() for layer in named)
    figure, axes = subplots(
        len(lines), len(starts), figsize=(0.8 + 3.2 * len(starts), 1.2 + 3 * len(lines)),
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for line, (part, shots) in zip(axes, lines, strict=True):
        for axis, initial in zip(line, starts, strict=True):
            for one in found:
                if (one.shots, one.initial) == (shots, initial):
                    draw_sparsities(axis, one.rows, "step", names[part], of_layers)
            axis.set(title=f"{part}, {shots}-shot,\nfrom {100 * initial:g}%", ylim=SHARES)
        line[0].set_ylabel("sparsity [%]")
    for axis in axes[-1]:
        axis.set_xlabel("meta-steps")
    figure.suptitle("Sparsity by layer over training, by initial sparsity")
    legend_below(figure, axes.flat, 3 * len(starts))
    return figure


def draw_panels(panels: list[list[Panel]]) -> "Figure":
    """A grid of axes with error bars over the seeds; missing places are gaps."""
    figure, axes = subplots(
        len(panels), len(panels[0]), figsize=(4 * len(panels[0]), 3.2 * len(panels)),
        squeeze=False,
    )  # fmt: skip
    for line, of_line in zip(axes, panels, strict=True):
        for axis, panel in zip(line, of_line, strict=True):
            for curve in panel.curves:
                _draw_curve(axis, curve)
            axis.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel, xscale="log")
            places = sorted({place for curve in panel.curves for place in curve.values})
            axis.set_xticks(places, [f"{place:g}" for place in places])
            axis.minorticks_off()
            if len(panel.curves) > 1:
                axis.legend()
    return figure


def _draw_curve(axis: Any, curve: Curve) -> None:
    """A line through the means in percent, with the standard deviations."""
    spreads = [mean_and_std(values) for _, values in sorted(curve.values.items())]
    axis.errorbar(
        sorted(curve.values), [100 * (x["mean"] or 0.0) for x in spreads],
        [math.nan if x["std"] is None else 100 * x["std"] for x in spreads],
        label=curve.label,
    )  # fmt: skip
