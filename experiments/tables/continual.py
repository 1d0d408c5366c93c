"""Tables 3, S5 and S6 and Figures S3 and S4: learning on streams of digits."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import continual, published
from experiments.report import percent, with_std
from experiments.tables.markdown import Lines, comparison, header, row, seeds
from experiments.tables.runner import Runner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.reproduce import Flags
    from jaxsparse.training.continual import ContinualConfig

_METHODS = (
    *("sparse-lamaml", "lamaml", "sync-lamaml", "cmaml-sync"),
    *("er", "mer", "gem", "agem", "sgd", "iid"),
)
INNER_RATES = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
WIDTHS = (25, 50, 100, 200, 400)
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


def accuracies(flags: "Flags", runner: Runner) -> Lines:
    """RA, BTI, LA and forward transfer of every method on every stream of digits."""
    experiment = continual.experiment()
    lines, results = [], {}
    for stream in flags.streams:
        lines += [f"**{stream}**, {seeds(flags.seeds)}:", ""]
        lines += header("method", *(label for label, _ in _SUMMARIES), "sparsity", "command")
        for method in flags.methods or _METHODS:
            result = runner.result(
                experiment, f"{stream}-{method}", cell_config(flags, stream, method)
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


def sparsities(flags: "Flags", runner: Runner) -> Lines:
    """Table S5: the sparsity at the end of the stream, by tensor."""
    experiment = continual.experiment()
    lines = [f"Final sparsity in %, ours ({seeds(flags.seeds)}) / the paper's.", ""]
    lines += header("stream", "method", "overall", *_TENSORS, "overall within the spread or 3")
    for stream, method, settings in _sparsity_runs(flags):
        result = runner.result(experiment, *_run(flags, stream, method, **settings))
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


def settings(flags: "Flags", runner: Runner) -> Lines:
    """Table S6: the rates and glances that retain most on held-out images, beside the paper's.

    What is chosen so is then run on all seeds, and measured on the test images.
    """
    experiment = continual.experiment()
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
            results[method] = runner.result(experiment, *_run(
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
    grid = continual.Grid(
        inner_lr=(0.05, 0.1, 0.15),
        mask_lr=(0.1, 0.3, 0.5) if method == "lamaml" else (0.75, 1.7, 3.0),
        glances=(5, 10),
    )
    scanned = runner.scan(f"settings-{stream}-{method}", config, grid)
    if scanned is None:
        return None
    chosen, points = scanned
    return (chosen.inner_lr, chosen.mask_lr, chosen.glances), points


def figure_s3(flags: "Flags", runner: Runner) -> Lines:
    """RA and sparsity against alpha_0, of La-MAML and sparse-La-MAML; drawn into the folder."""
    experiment = continual.experiment()
    lines, curves = [], {}
    for stream in flags.streams:
        lines += [f"**{stream}**, {seeds(flags.seeds)}:", ""]
        lines += header("alpha_0", *(f"{m}, {what}" for m in _SPARSE for what in _S3_PANELS))
        for alpha in INNER_RATES:
            cells = []
            for method in _SPARSE:
                result = runner.result(experiment, *_run(flags, stream, method, inner_lr=alpha))
                values = None
                if result is not None:
                    values = (result["retained_accuracy"], result["sparsity"]["total"])
                    curves[stream, method, alpha] = values
                cells += ["-", "-"] if values is None else [with_std(v) for v in values]
            lines.append(row(f"{alpha:g}", *cells))
        lines.append("")
    _save(_draw_s3(flags, curves), flags, "figure-s3.png")
    return [*lines, f"Figure: {flags.out / 'figure-s3.png'}"]


def figure_s4(flags: "Flags", runner: Runner) -> Lines:
    """Sparsity by task, and its end against the width of the layers (rotations)."""
    experiment = continual.experiment()
    lines = [f"Final sparsity in % on rotations against the width, {seeds(flags.seeds)}:", ""]
    lines += header("width", *_SPARSE)
    ends: dict[tuple[str, int], Any] = {}
    for width in WIDTHS:
        for method in _SPARSE:
            result = runner.result(experiment, *_run(flags, "rotations", method, width=width))
            if result is not None:
                ends[method, width] = result["sparsity"]
        cells = [with_std(ends[m, width]["total"]) if (m, width) in ends else "-" for m in _SPARSE]
        lines.append(row(str(width), *cells))
    by_task = {m: runner.rows(experiment, f"rotations-{m}") for m in _SPARSE if (m, 100) in ends}
    _save(_draw_s4(by_task, ends), flags, "figure-s4.png")
    return [*lines, "", f"Figure: {flags.out / 'figure-s4.png'}"]


_S3_PANELS = ("RA", "sparsity")


def _draw_s3(flags, curves) -> "Figure":
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(flags.streams), figsize=(4 * len(flags.streams), 5.6), sharex=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, stream in zip(axes.T, flags.streams, strict=True):
        for panel, axis in enumerate(column):
            for method in _SPARSE:
                points = [
                    (a, v[panel]) for (s, m, a), v in curves.items() if (s, m) == (stream, method)
                ]
                alphas, values = [alpha for alpha, _ in points], [value for _, value in points]
                _with_spread(axis, alphas, values, method)
            axis.set(ylabel=f"{_S3_PANELS[panel]} [%]", xscale="log")
        column[0].set(title=stream)
        column[1].set(xlabel="alpha_0")
    axes[0, 0].legend(frameon=False, fontsize="small")
    return figure


def _draw_s4(by_task, ends) -> "Figure":
    from matplotlib import pyplot as plt

    from experiments.plots import band

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (method, rows) in zip(axes, by_task.items(), strict=False):
        for name in ("total", *_TENSORS):
            values = [100 * np.atleast_1d(row["sparsity"][name]) for row in rows]
            band(axis, [row["task"] for row in rows], values, name)
        axis.set(title=method, xlabel="tasks learned", ylabel="sparsity [%]", ylim=(-2, 102))
    # Below the panels: within them it would lie on the curves.
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=1 + len(_TENSORS),
        frameon=False, fontsize="small",
    )  # fmt: skip
    for method in _SPARSE:
        widths = [width for m, width in ends if m == method]
        totals = [ends[method, width]["total"] for width in widths]
        _with_spread(axes[2], widths, totals, method)
    axes[2].set(xlabel="width of the hidden layers", ylabel="final sparsity [%]", xscale="log")
    axes[2].set_xticks(WIDTHS, [str(width) for width in WIDTHS])
    axes[2].minorticks_off()
    axes[2].legend(frameon=False, fontsize="small")
    return figure


def _with_spread(axis, places, shares, label):
    """Means in percent at their places, with the standard deviation over seeds."""
    axis.errorbar(
        places, [100 * share["mean"] for share in shares],
        [100 * (share["std"] or 0) for share in shares],
        label=label, marker="o", markersize=3, capsize=2,
    )  # fmt: skip


def _save(figure, flags, name):
    from matplotlib import pyplot as plt

    from jaxsparse.training import writing

    with writing(flags.out / name):
        flags.out.mkdir(parents=True, exist_ok=True)
        figure.savefig(flags.out / name, dpi=150)
    plt.close(figure)


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


def cell_config(flags: "Flags", stream: str, method: str, **settings: Any) -> "ContinualConfig":
    """The published settings of a method on a stream, with the flags' seeds."""
    from experiments.continual_presets import preset_config

    config = preset_config(stream, method, memories=settings.get("memories", 0))
    settings = {"seeds": flags.seeds, **settings}
    return dataclasses.replace(config, data_dir=flags.data_dir, **settings)
