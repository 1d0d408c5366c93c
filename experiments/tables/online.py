"""Tables S8 and S9: online learning on a switching stream."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from experiments import online, published
from experiments.online.report import with_sample_std
from experiments.report import with_std
from experiments.tables.flags import Flags
from experiments.tables.markdown import Lines, comparison, gap, header, row, seeds
from experiments.tables.runner import Runner
from jaxsparse.training.online import OnlineConfig

_PUBLISHED_TIMESTEPS = 10_000
_ACCURACIES = ("total", "omniglot", "mnist", "fashion_mnist")
_EDGES = (100, 200, 500, 1000)  # timesteps: parts of the stream that the lead is shown for
S8_METHODS = (
    *("online-adam", "fine-tuning", "maml", "anil", "bgd", "metacog", "metabgd"),
    *("cmaml", "cmaml-fixed", "sparse-cmaml", "sparse-relu-cmaml"),
)
S9_METHODS = ("cmaml", "cmaml-fixed", "sparse-cmaml", "sparse-relu-cmaml")
# Settings beside the presets. Of C-MAML Table S9 names another first rate than OSAKA's public code,
# which the preset has: both are shown.
_READINGS: dict[str, tuple[dict[str, Any], ...]] = {"cmaml": ({}, {"inner_lr": 0.1})}


def accuracies(flags: Flags, runner: Runner) -> Lines:
    """Table S8: the online accuracy of every method, in total and by data set."""
    lines = [_heading(flags), ""]
    for p in flags.p:
        lines += [f"**p = {p:g}**", ""]
        lines += header("method", *_ACCURACIES, "detected", "false alarms", "sparsity")
        results = {}
        for method, config, result in _runs(flags, runner, p, flags.methods or S8_METHODS):
            label = method
            if method in _READINGS:
                label += f", alpha_0 {config.inner_lr:g}"
            if result is not None:
                results[label] = result
            for print_, paper in published.TABLE_S8.get((method, p), {"": {}}).items():
                cells = [_cell(_accuracy(result, n), paper.get(n)) for n in _ACCURACIES]
                name = f"{label}{print_ and f' ({print_})'}"
                lines.append(row(name, *cells, *_detected(result), _sparsity(result)))
        lines += ["", *_comparisons(results), ""]
    return lines


def settings(flags: Flags, runner: Runner) -> Lines:
    """Table S9: the online accuracy of C-MAML's variants, with their rates."""
    lines = [_heading(flags), ""]
    lines += header("p", "method", "accuracy", "alpha_0", "gamma_m", "the paper's rates")
    for p in flags.p:
        for method, config, result in _runs(flags, runner, p, flags.methods or S9_METHODS):
            paper, rates = published.TABLE_S9.get((method, p), (None, "-"))
            gated = method in ("cmaml-fixed", "cmaml", "sparse-cmaml")
            learned = method != "cmaml-fixed"
            lines.append(row(
                f"{p:g}", method, _cell(_accuracy(result, "total"), paper),
                f"{config.inner_lr:g}" if gated else "-",
                f"{config.mask_lr:g}" if learned else "-", rates,
            ))  # fmt: skip
    return lines


def lead(flags: Flags, runner: Runner) -> Lines:
    """By how many points sparse-C-MAML is above C-MAML, by part of the stream and by data set."""
    edges = [0, *(edge for edge in _EDGES if edge < flags.timesteps), flags.timesteps]
    spans = list(itertools.pairwise(edges))
    lines = [
        "Online accuracy of sparse-cmaml less that of cmaml, in points: mean of the differences"
        f" seed by seed (seeds 0 to {flags.seeds - 1}), with its standard error.",
        "",
    ]
    of_spans = [f"{start + 1:,}-{end:,}" for start, end in spans]
    total = f"all {flags.timesteps:,} timesteps"
    lines += header("p", "alpha_0 of cmaml", total, *of_spans, *_ACCURACIES[1:])
    for p in flags.p:
        ours = _parts(flags, runner, p, "sparse-cmaml", {}, spans)
        for own in _READINGS["cmaml"]:
            theirs = _parts(flags, runner, p, "cmaml", own, spans)
            cells = ["-"] * (len(spans) + len(_ACCURACIES))
            if ours is not None and theirs is not None:
                cells = [_gap(a, b) for a, b in zip(ours, theirs, strict=True)]
            rate = cell_config(flags, p, "cmaml", **own).inner_lr
            lines.append(row(f"{p:g}", f"{rate:g}", *cells))
    return lines


def _parts(flags, runner, p, method, own, spans):
    """Of a run the accuracies of each seed: in total, in spans of timesteps, by data set."""
    result = _result(flags, runner, p, method, own)
    if result is None:
        return None
    rows = runner.rows(online, _name(flags, p, method, own))
    total = [seed["accuracy"] for seed in result["seeds"]]
    by_dataset = [
        [seed["by_dataset"].get(name) for seed in result["seeds"]] for name in _ACCURACIES[1:]
    ]
    return [total, *(_in_span(rows, *span) for span in spans), *by_dataset]


def _in_span(rows, start, end):
    """The accuracy of each seed in the timesteps of a span, None where rows do not tell it."""
    lengths, accuracies = [], []
    for before, last in itertools.pairwise(rows):
        if start <= before["step"] and last["step"] <= end:
            lengths.append(last["step"] - before["step"])
            accuracies.append(np.array(last["interval_accuracy"], float, ndmin=1))
    if sum(lengths) != end - start:
        return [None]
    return list(np.average(accuracies, axis=0, weights=lengths))


def _gap(ours, theirs):
    if None in (*ours, *theirs):
        return "-"
    mean, error = gap(ours, theirs)
    return f"{mean:+.2f}" if math.isinf(error) else f"{mean:+.2f} ({error:.2f})"


def cell_config(flags: Flags, p: float, method: str, **own: Any) -> OnlineConfig:
    """The published settings of a method at p, with the flags' seeds and timesteps."""
    own = {"seeds": flags.seeds, "timesteps": flags.timesteps, "data_dir": flags.data_dir, **own}
    return dataclasses.replace(online.preset_config(p, method), **own)


def _runs(flags, runner, p, methods):
    """Method, configuration and result of each row; None for what of a method is not there.

    A method of which no run is there has no row.
    """
    for method in methods:
        readings = _READINGS.get(method, ({},))
        results = [_result(flags, runner, p, method, own) for own in readings]
        if any(result is not None for result in results):
            for own, result in zip(readings, results, strict=True):
                yield method, cell_config(flags, p, method, **own), result


def _name(flags, p, method, own) -> str:
    name = "-".join([f"p{p:g}-{method}", *(f"{n}-{value:g}" for n, value in own.items())])
    return name if flags.timesteps == _PUBLISHED_TIMESTEPS else f"{name}-{flags.timesteps}"


def _result(flags, runner, p, method, own) -> dict[str, Any] | None:
    name, config = _name(flags, p, method, own), cell_config(flags, p, method, **own)
    result = runner.result(online, name, config)
    return None if result is None else with_sample_std(result)


def _heading(flags):
    heading = (
        f"Online accuracy in %, ours ({seeds(flags.seeds)}) / the paper's. Our std has N - 1; the"
        " paper's, in the rows it takes from OSAKA (all but the sparse ones and cmaml-fixed), is"
        " that of OSAKA's code, of the population (N)."
    )
    if flags.timesteps == _PUBLISHED_TIMESTEPS:
        return heading
    return (
        f"{heading} Ours are of the first {flags.timesteps:,} timesteps, the paper's of"
        f" {_PUBLISHED_TIMESTEPS:,}: they are no comparison, which is between the methods."
    )


def _accuracy(result, name):
    if result is None:
        return None
    return result["accuracy"] if name == "total" else result["by_dataset"].get(name)


def _cell(ours: dict[str, Any] | None, paper: published.Published | None) -> str:
    cell = "-" if ours is None else with_std(ours)
    return cell if paper is None else f"{cell} / {paper.mean:g} +- {paper.std:g}"


def _detected(result):
    found = [] if result is None else [seed.get("detections") for seed in result["seeds"]]
    if not found or None in found:
        return "-", "-"
    hits, switches, alarms = (
        sum(one[name] for one in found) for name in ("hits", "switches", "false_alarms")
    )
    return f"{hits:g} of {switches:g}", f"{alarms:g}"


def _sparsity(result):
    total = None if result is None else result["sparsity"].get("total")
    return with_std(total) if total else "-"


def _comparisons(results):
    """How sparse-C-MAML stands to the others on the same streams."""
    ours = results.get("sparse-cmaml")
    return [
        comparison(f"sparse-cmaml is {{}} {other}", "accuracy", ours["seeds"], result["seeds"])
        for other, result in results.items()
        if ours is not None and other != "sparse-cmaml"
    ]
