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
from experiments.tables.markdown import Lines, comparison, header, row, seeds
from experiments.tables.runner import Runner
from experiments.tables.seeds import of_seeds
from experiments.tables.verdicts import t_interval
from jaxsparse.training.online import OnlineConfig

_PUBLISHED_TIMESTEPS = 10_000
_ACCURACIES = ("total", "omniglot", "mnist", "fashion_mnist")
_EDGES = (100, 200, 500, 1000)  # timesteps where the parts of the stream end, for `lead`
S8_METHODS = (
    *("online-adam", "fine-tuning", "maml", "anil", "bgd", "metacog", "metabgd"),
    *("cmaml", "cmaml-fixed", "sparse-cmaml", "sparse-relu-cmaml"),
)
S9_METHODS = ("cmaml", "cmaml-fixed", "sparse-cmaml", "sparse-relu-cmaml")
# Changes to the presets. C-MAML's first rate in Table S9 differs from that in OSAKA's public code,
# which is the preset's: both are shown.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {"cmaml": ({}, {"inner_lr": 0.1})}


def accuracies(flags: Flags, runner: Runner) -> Lines:
    """Table S8: the online accuracy of every method, in total and by dataset."""
    lines = [_heading(flags), ""]
    for p in flags.p:
        lines += [f"**p = {p:g}**", ""]
        lines += header(
            "method", "timesteps x seeds", *_ACCURACIES, "detected", "false alarms", "sparsity"
        )
        results = {}
        for method, config, result in _runs(flags, runner, p, flags.methods or S8_METHODS):
            label = method
            if method in VARIANTS:
                label += f", alpha_0 {config.inner_lr:g}"
            if result is not None:
                results[label] = result
            for print_, paper in published.TABLE_S8.get((method, p), {"": {}}).items():
                cells = [_cell(_accuracy(result, n), paper.get(n)) for n in _ACCURACIES]
                name = f"{label}{print_ and f' ({print_})'}"
                length = f"{config.timesteps:,} x {config.seeds}" if result else "-"
                lines.append(row(name, length, *cells, *_detected(result), _sparsity(result)))
        lines += ["", *_comparisons(results), ""]
    return lines


def whole(flags: Flags, runner: Runner) -> Lines:
    """Table S8 for whole streams with one seed."""
    return accuracies(whole_streams(flags), runner)


def whole_streams(flags: Flags) -> Flags:
    """The flags of whole streams with one seed."""
    return Flags(
        methods=flags.methods, p=flags.p, data_dir=flags.data_dir, seeds=1,
        timesteps=_PUBLISHED_TIMESTEPS,
    )  # fmt: skip


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
    """Accuracy of sparse-C-MAML minus C-MAML's, by part of the stream and by dataset."""
    edges = [0, *(edge for edge in _EDGES if edge < flags.timesteps), flags.timesteps]
    spans = list(itertools.pairwise(edges))
    lines = [
        "Online accuracy of sparse-cmaml minus that of cmaml, in points: mean of the differences"
        f" of each seed (seeds 0 to {flags.seeds - 1}), with its standard error.",
        "",
    ]
    of_spans = [f"{start + 1:,}-{end:,}" for start, end in spans]
    total = f"all {flags.timesteps:,} timesteps"
    lines += header("p", "alpha_0 of cmaml", total, *of_spans, *_ACCURACIES[1:])
    for p in flags.p:
        ours = _parts(flags, runner, p, "sparse-cmaml", {}, spans)
        for changes in VARIANTS["cmaml"]:
            theirs = _parts(flags, runner, p, "cmaml", changes, spans)
            cells = ["-"] * (len(spans) + len(_ACCURACIES))
            if ours is not None and theirs is not None:
                cells = [_gap(a, b) for a, b in zip(ours, theirs, strict=True)]
            rate = cell_config(flags, p, "cmaml", **changes).inner_lr
            lines.append(row(f"{p:g}", f"{rate:g}", *cells))
    return lines


def _parts(flags, runner, p, method, changes, spans):
    """The accuracies of each seed of a run: in total, in spans of timesteps, by dataset."""
    result = result_of(flags, runner, p, method, changes)
    if result is None:
        return None
    rows = runner.rows(online, _name(flags, p, method, changes))
    by_dataset = [
        [seed["by_dataset"].get(name) for seed in result["seeds"]] for name in _ACCURACIES[1:]
    ]
    return [of_seeds(result), *(_in_span(rows, *span) for span in spans), *by_dataset]


def _in_span(rows, start, end):
    """The accuracy of each seed in a span of timesteps; [None] if rows do not match the span."""
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
    mean, error, _ = t_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    return f"{mean:+.2f}" if math.isinf(error) else f"{mean:+.2f} ({error:.2f})"


def cell_config(flags: Flags, p: float, method: str, **changes: Any) -> OnlineConfig:
    """The published settings of a method at p, with the flags' seeds, timesteps and `changes`."""
    changes = {
        "seeds": flags.seeds,
        "timesteps": flags.timesteps,
        "data_dir": flags.data_dir,
        **changes,
    }
    return dataclasses.replace(online.preset_config(p, method), **changes)


def _runs(flags, runner, p, methods):
    """Method, configuration and result (or None) of each row; a method without any is skipped."""
    for method in methods:
        variants = VARIANTS.get(method, ({},))
        results = [result_of(flags, runner, p, method, changes) for changes in variants]
        if any(result is not None for result in results):
            for changes, result in zip(variants, results, strict=True):
                yield method, cell_config(flags, p, method, **changes), result


def _name(flags, p, method, changes) -> str:
    name = "-".join([f"p{p:g}-{method}", *(f"{n}-{value:g}" for n, value in changes.items())])
    if flags.timesteps != _PUBLISHED_TIMESTEPS:
        return f"{name}-{flags.timesteps}"
    return f"{name}-seed-0" if flags.seeds == 1 else name


def result_of(
    flags: Flags, runner: Runner, p: float, method: str, changes: dict[str, Any]
) -> dict[str, Any] | None:
    """The result of a method at p with changed settings; None if it does not exist."""
    name, config = _name(flags, p, method, changes), cell_config(flags, p, method, **changes)
    result = runner.result(online, name, config)
    return None if result is None else with_sample_std(result)


def _heading(flags):
    heading = (
        f"Online accuracy in %, ours ({seeds(flags.seeds)}) / the paper's. Our std divides by"
        " N - 1. In the rows that the paper takes from OSAKA (all but the sparse methods and"
        " cmaml-fixed), the std is from OSAKA's code, which divides by N."
    )
    if flags.timesteps == _PUBLISHED_TIMESTEPS:
        return heading
    return (
        f"{heading} Ours are over the first {flags.timesteps:,} timesteps, the paper's over all"
        f" {_PUBLISHED_TIMESTEPS:,}. So compare the methods with each other, not with the paper."
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
    """Compare sparse-C-MAML with each other method on the same streams."""
    ours = results.get("sparse-cmaml")
    return [
        comparison(f"sparse-cmaml is {{}} {other}", "accuracy", ours["seeds"], result["seeds"])
        for other, result in results.items()
        if ours is not None and other != "sparse-cmaml"
    ]
