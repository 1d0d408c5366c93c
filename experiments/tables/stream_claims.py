"""The claims about continual learning and about online learning on a switching stream."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from experiments import continual, published
from experiments.tables import online, split_cifar
from experiments.tables.continual import SPARSE, STREAMS, named_run, scanned
from experiments.tables.evidence import LESS, Claim, Evidence, Intervals
from experiments.tables.figures import INNER_RATES, WIDTHS
from experiments.tables.seeds import of_seeds, sparsity
from experiments.tables.split_cifar import MEMORIES, VARIANTS, head_rest_all
from experiments.tables.verdicts import POSITIVE, Wanted, difference, interval

Result = dict[str, Any]
_RETAINED = "retained_accuracy"
_RA = "difference of RA"
_ONLINE = "difference of the online accuracies, by p"
_DIGITS = "MNIST, streams of tasks"
_DEPTH = ("dense1/kernel", "dense2/kernel", "head/kernel")
# The streams whose published sparsity decided a setting that the paper leaves open.
_DECIDED = {"lamaml": "many-permutations", "sparse-lamaml": "rotations"}
# The step sizes at which the methods' ranges are compared (Fig. S3).
_RATES = tuple(rate for rate in INNER_RATES if 0.05 <= rate <= 0.2)
NAMES = {"lamaml": "La-MAML", "sparse-lamaml": "sparse-La-MAML", "er": "ER", "mer": "MER",
         "gem": "GEM", "online-adam": "online Adam",
         "bgd": "BGD", "cmaml": "C-MAML", "cmaml-fixed": "C-MAML-fixed",
         "sparse-cmaml": "sparse-C-MAML", "sparse-relu-cmaml": "sparse-ReLU-C-MAML"}  # fmt: skip


# ---- continual learning


def continual_claims() -> list[Claim]:
    """The claims about continual learning, in the order of the paper."""
    return [*_retained(), *_sparse(), *_split_cifar()]


def _retained() -> Iterator[Claim]:
    for other in ("lamaml", "er", "mer", "gem"):
        yield Claim(
            f"sparse-La-MAML retains more than {NAMES[other]}", "Table 3", _DIGITS, _RA, POSITIVE,
            partial(_leads, other=other),
        )  # fmt: skip
    yield Claim(
        "sparse-La-MAML retains more than La-MAML, both with settings chosen on held-out images",
        "Tables 3 and S6", _DIGITS, _RA, POSITIVE, _chosen,
    )  # fmt: skip
    yield Claim(
        "sparse-La-MAML depends less on the step size alpha_0", "Fig. S3", _DIGITS,
        f"range of RA for alpha_0 from {_RATES[0]:g} to {_RATES[-1]:g}: La-MAML's minus its own",
        POSITIVE, _ranges,
    )  # fmt: skip


def _run(evidence: Evidence, table: str, stream: str, method: str, **changes: Any) -> Result | None:
    flags, runner = evidence.table(table)
    return runner.result(continual, *named_run(flags, stream, method, **changes))


def _leads(evidence: Evidence, other: str) -> Intervals:
    for stream in STREAMS:
        ours, theirs = (_run(evidence, "table 3", stream, m) for m in ("sparse-lamaml", other))
        if ours and theirs:
            yield difference(stream, of_seeds(ours, _RETAINED), of_seeds(theirs, _RETAINED))


def _chosen(evidence: Evidence) -> Intervals:
    flags, runner = evidence.table("table S6")
    for stream in STREAMS:
        results = []
        for method in ("sparse-lamaml", "lamaml"):
            found = scanned(flags, runner, stream, method)
            if found is not None:
                changes = dict(zip(("inner_lr", "mask_lr", "glances"), found[0], strict=True))
                results.append(_run(evidence, "table S6", stream, method, **changes))
        if len(results) == 2 and results[0] and results[1]:
            yield difference(
                stream, of_seeds(results[0], _RETAINED), of_seeds(results[1], _RETAINED)
            )


def _ranges(evidence: Evidence) -> Intervals:
    for stream in STREAMS:
        spans = []
        for method in SPARSE:
            runs = [_run(evidence, "figure S3", stream, method, inner_lr=x) for x in _RATES]
            found = [run for run in runs if run]
            if len(found) == len(_RATES):  # else the other method's range may be over more rates
                each = zip(*[of_seeds(run, _RETAINED) for run in found], strict=True)
                spans.append([max(seed) - min(seed) for seed in each])
        if len(spans) == len(SPARSE):
            yield difference(stream, *spans)


def _sparse() -> Iterator[Claim]:
    for method in SPARSE:
        name = NAMES[method]
        yield Claim(
            f"The final sparsity of {name} is that of the paper", "Table S5", _DIGITS,
            f"ours minus the paper's, without {_DECIDED[method]}, where it decided a setting",
            Wanted(-3.0, 3.0), partial(_as_published, method=method),
        )  # fmt: skip
        yield Claim(
            f"The biases of {name}'s output layer freeze entirely", "Table S5", _DIGITS,
            "their sparsity", Wanted(low=95.0), partial(_head_biases, method=method),
        )  # fmt: skip
        yield Claim(
            f"The weights of deeper layers of {name} are sparser", "Table S5", _DIGITS, LESS,
            POSITIVE, partial(_by_depth, method=method),
        )  # fmt: skip
        yield Claim(
            f"Wider networks of {name} are less sparse", "Figs. 3 and S4", _DIGITS, LESS,
            POSITIVE, partial(_by_width, method=method),
        )  # fmt: skip
    yield Claim(
        "La-MAML freezes more than sparse-La-MAML", "Table S5", _DIGITS, LESS, POSITIVE,
        _freezes_more,
    )  # fmt: skip


def _as_published(evidence: Evidence, method: str) -> Intervals:
    for stream in STREAMS:
        if stream == _DECIDED[method]:
            continue
        result = _run(evidence, "table S5", stream, method)
        paper = published.TABLE_S5[stream, method]["total"].mean / 100
        if result:
            yield interval(stream, [share - paper for share in sparsity(result)])


def _head_biases(evidence: Evidence, method: str) -> Intervals:
    for stream in STREAMS:
        result = _run(evidence, "table S5", stream, method)
        if result:
            yield interval(stream, sparsity(result, "head/bias"))


def _by_depth(evidence: Evidence, method: str) -> Intervals:
    for stream in STREAMS:
        result = _run(evidence, "table S5", stream, method)
        if not result:
            continue
        for shallow, deep in itertools.pairwise(_DEPTH):
            layers = " - ".join(name.split("/")[0] for name in (deep, shallow))
            pair = [sparsity(result, name) for name in (deep, shallow)]
            yield difference(f"{stream}, {layers}", *pair)


def _by_width(evidence: Evidence, method: str) -> Intervals:
    for stream in STREAMS:
        table = "figure 3" if stream == "rotations" else "figure S4"
        runs = [(width, _run(evidence, table, stream, method, width=width)) for width in WIDTHS]
        found = [(width, sparsity(result)) for width, result in runs if result]
        for (narrow, more), (wide, less) in itertools.pairwise(found):
            yield difference(f"{stream}, {narrow} - {wide}", more, less)


def _freezes_more(evidence: Evidence) -> Intervals:
    for stream in STREAMS:
        more, less = (_run(evidence, "table S5", stream, method) for method in SPARSE)
        if more and less:
            yield difference(stream, sparsity(more), sparsity(less))


def _split_cifar() -> Iterator[Claim]:
    for other in ("lamaml", "er", "mer", "gem"):
        yield Claim(
            f"sparse-La-MAML is more accurate than {NAMES[other]}", "Table S7", "Split-CIFAR-10",
            "difference of the accuracies, by images in memory", POSITIVE,
            partial(_on_cifar, other=other),
        )  # fmt: skip
    yield Claim(
        "The sparsity of sparse-La-MAML is in the output layer", "text about Table S7",
        "Split-CIFAR-10", "sparsity of the output layer minus that of the others",
        Wanted(low=10.0), _in_the_head,
    )  # fmt: skip


def _cifar(evidence: Evidence, memories: int, method: str) -> Sequence[Result | None]:
    flags, runner = evidence.table("table S7")
    variant = VARIANTS.get(method, ({},))[0]
    return split_cifar.by_seed(flags, runner, memories, method, variant)


def _on_cifar(evidence: Evidence, other: str) -> Intervals:
    for memories in MEMORIES:
        pairs = [
            (ours["retained_accuracy"]["mean"], theirs["retained_accuracy"]["mean"])
            for ours, theirs in zip(
                _cifar(evidence, memories, "sparse-lamaml"),
                _cifar(evidence, memories, other), strict=True,
            )
            if ours and theirs
        ]  # fmt: skip
        if pairs:
            yield difference(f"{memories}", *zip(*pairs, strict=True))


def _in_the_head(evidence: Evidence) -> Intervals:
    for memories in MEMORIES:
        found = [run for run in _cifar(evidence, memories, "sparse-lamaml") if run]
        if found:
            parts = [head_rest_all(run["sparsity"]) for run in found]
            yield difference(f"{memories}", *list(zip(*parts, strict=True))[:2])


# ---- online learning


def online_claims() -> list[Claim]:
    """The claims about online learning, in the order of the paper."""
    whole = _online("table S8-full", "whole streams", _PAIRS)
    return [*_online("table S8", "the first 1,000 timesteps", (*_PAIRS, *_MORE_PAIRS)), *whole]


_Pair = tuple[str, str, dict[str, Any]]
_PAIRS: tuple[_Pair, ...] = (
    ("sparse-cmaml", "cmaml", {}),
    ("sparse-cmaml", "cmaml", {"inner_lr": 0.1}),
    ("sparse-relu-cmaml", "cmaml", {"inner_lr": 0.1}),
    ("sparse-cmaml", "cmaml-fixed", {}),
)
_MORE_PAIRS: tuple[_Pair, ...] = (
    ("sparse-cmaml", "bgd", {}),
    ("sparse-cmaml", "online-adam", {}),
)


def _online(table: str, runs: str, pairs: tuple[_Pair, ...]) -> Iterator[Claim]:
    for ours, other, changes in pairs:
        source = "Table S9" if other == "cmaml-fixed" else "Table S8"
        start = " (alpha_0 of Table S9)" if changes else " (alpha_0 of OSAKA's code)"
        name = NAMES[other] + (start if other == "cmaml" else "")
        yield Claim(
            f"{NAMES[ours]} is more accurate than {name}", source, runs, _ONLINE, POSITIVE,
            partial(_online_leads, table=table, ours=ours, other=other, changes=changes),
        )  # fmt: skip
    yield Claim(
        "sparse-C-MAML gains most on Fashion-MNIST", "Table S8", runs,
        "gain over C-MAML on Fashion-MNIST minus that on the others, by p", POSITIVE,
        partial(_on_fashion, table=table),
    )  # fmt: skip


def _streams(
    evidence: Evidence, table: str, p: float, *runs: tuple[str, dict[str, Any]]
) -> list[Result] | None:
    """The results of methods at p, or None if one is missing."""
    flags, runner = evidence.table(table)
    if table == "table S8-full":
        flags = online.whole_streams(flags)
    found = [online.result_of(flags, runner, p, method, changes) for method, changes in runs]
    return [run for run in found if run] if all(found) else None


def _online_leads(
    evidence: Evidence, table: str, ours: str, other: str, changes: dict[str, Any]
) -> Intervals:
    for p in evidence.table(table).flags.p:
        found = _streams(evidence, table, p, (ours, {}), (other, changes))
        if found:
            yield difference(f"{p:g}", *(of_seeds(run, "accuracy") for run in found))


def _on_fashion(evidence: Evidence, table: str) -> Intervals:
    for p in evidence.table(table).flags.p:
        found = _streams(evidence, table, p, ("sparse-cmaml", {}), ("cmaml", {"inner_lr": 0.1}))
        if found:
            gains = {
                name: [
                    ours["by_dataset"][name] - theirs["by_dataset"][name]
                    for ours, theirs in zip(*(run["seeds"] for run in found), strict=True)
                ]
                for name in ("fashion_mnist", "omniglot", "mnist")
            }
            for other in ("omniglot", "mnist"):
                yield difference(f"{p:g}, {other}", gains["fashion_mnist"], gains[other])
