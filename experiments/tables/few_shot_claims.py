"""The claims about few-shot learning."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

from experiments.tables import scales
from experiments.tables.evidence import LESS, Claim, Evidence, Intervals
from experiments.tables.paper_few_shot import (
    SHOTS,
    VARIANTS,
    Found,
    found_run,
    of_method,
    on_domain,
    second_phase,
)
from experiments.tables.scales import METHODS, SETTINGS, Setting
from experiments.tables.seeds import of_seeds, sparsity
from experiments.tables.verdicts import POSITIVE, Interval, Wanted, difference, interval

# A gain below this many points counts as none.
_NO_GAIN = Wanted(high=1.0)
_MORE = "difference of the accuracies"
(_FIGURES,) = SETTINGS["figure 1", "cpu"]
_SPARSE = ("sparse-maml", "sparse-relu-maml")
_OTHERS = ("fomaml", "maml", "anil", "boil")
_CONVOLUTIONS = tuple(f"conv{i}/kernel" for i in range(1, 5))
_GAINS = tuple(f"norm{i}/scale" for i in range(1, 5))
_FEW_STEPS = 5


def claims() -> list[Claim]:
    """The claims about few-shot learning, in the order of the paper."""
    return [*_tables(), *_domains(), *_figures(), *_resnets(), *_norms(), *_phases()]


# ---- Table 1


def _tables() -> Iterator[Claim]:
    for setting in SETTINGS["table 1", "cpu"]:
        for ours in _SPARSE:
            for other in _OTHERS:
                if other in setting.methods:
                    yield _better("Table 1", "table 1", setting, ours, other)
    yield _better("Table 1", "table 1", _FIGURES, "sparse-maml-plus", "sparse-maml")


def _better(source: str, table: str, setting: Setting, ours: str, other: str) -> Claim:
    """One method is more accurate than another."""
    return Claim(
        f"{METHODS[ours]} is more accurate than {METHODS[other]}", source, setting.label, _MORE,
        POSITIVE, partial(_gains, table=table, setting=setting, methods=(ours, other)),
    )  # fmt: skip


def _gains(evidence: Evidence, table: str, setting: Setting, methods: tuple[str, str]) -> Intervals:
    flags, runner = evidence.table(table)
    for shots in SHOTS:
        ours, other = (of_method(flags, runner, setting, shots, name) for name in methods)
        yield _gain(f"{shots}-shot", ours, other)


def _gain(label: str, ours: Found | None, other: Found | None) -> Interval | None:
    """The difference of the accuracies of two runs."""
    if ours is None or other is None:
        return None
    return difference(label, of_seeds(ours.result), of_seeds(other.result))


def _domains() -> Iterator[Claim]:
    for setting in SETTINGS["other domains", "cpu"]:
        for method in _SPARSE:
            yield Claim(
                f"{METHODS[method]} is more accurate than FOMAML on other domains",
                "Table 1, right half", f"{setting.label}, tested on others", _MORE, POSITIVE,
                partial(_on_others, setting=setting, method=method),
            )  # fmt: skip


def _on_others(evidence: Evidence, setting: Setting, method: str) -> Intervals:
    flags, runner = evidence.table("table 1")
    for shots in SHOTS:
        ours, other = (of_method(flags, runner, setting, shots, m) for m in (method, "fomaml"))
        for domain in scales.DOMAINS["cpu"]:
            if domain == setting.dataset or ours is None or other is None:
                continue
            pair = [on_domain(runner, found, domain) for found in (ours, other)]
            if pair[0] and pair[1]:
                yield difference(f"{domain}, {shots}-shot", pair[0], pair[1])


# ---- Figures 1, 2, S1 and S2


def _figures() -> Iterator[Claim]:
    runs = f"{_FIGURES.label}, 5-shot"
    yield Claim(
        "Sparsity emerges from every initial sparsity", "Fig. 1", runs,
        "final sparsity, by initial sparsity", Wanted(low=10.0), _final,
    )  # fmt: skip
    yield Claim(
        "A higher initial sparsity gives a higher accuracy", "Fig. 1", runs, _MORE, POSITIVE,
        _by_start,
    )  # fmt: skip
    yield Claim(
        "The sparsity of the convolutions falls with depth", "Fig. 1", runs, LESS, POSITIVE,
        partial(_by_depth, names=_CONVOLUTIONS),
    )  # fmt: skip
    yield Claim(
        "The biases of the output layer freeze entirely", "Fig. S1", runs,
        "their final sparsity, by initial sparsity", Wanted(low=95.0), _head_biases,
    )  # fmt: skip
    yield Claim(
        "The gains of the last batch norm are less sparse than those of the first", "Fig. S1",
        runs, LESS, POSITIVE,
        partial(_by_depth, names=(_GAINS[0], _GAINS[-1])),
    )  # fmt: skip
    yield Claim(
        "The sparsity of batch-norm gains is not monotone in depth", "Fig. S1", runs,
        "largest rise and largest fall from one layer to the next; wider, as each is one of three",
        POSITIVE, _turns,
    )  # fmt: skip
    yield Claim(
        "Wider networks are less sparse", "Fig. S2", runs, LESS, POSITIVE, _by_width
    )  # fmt: skip
    for method, wanted, text in (
        ("sparse-maml", POSITIVE, "More inner steps help sparse-MAML"),
        ("fomaml", _NO_GAIN, "More inner steps do not help MAML (here FOMAML)"),
    ):
        yield Claim(
            text, "Fig. 2", runs, f"accuracy minus that with K = {_FEW_STEPS}", wanted,
            partial(_by_steps, method=method),
        )  # fmt: skip


def _started(evidence: Evidence, initial: float) -> Found | None:
    """The run of Figure 1 with an initial sparsity."""
    flags, runner = evidence.table("figure s1")
    return found_run(
        runner, *_FIGURES.run(flags, 5, "sparse-maml", initial_sparsity=initial)
    )  # fmt: skip


def _final(evidence: Evidence) -> Intervals:
    for initial in scales.INITIAL_SPARSITIES:
        found = _started(evidence, initial)
        yield found and interval(f"{100 * initial:g}%", sparsity(found.result))


def _by_start(evidence: Evidence) -> Intervals:
    for low, high in itertools.pairwise(scales.INITIAL_SPARSITIES):
        ours, other = _started(evidence, high), _started(evidence, low)
        yield _gain(f"{100 * high:g}% - {100 * low:g}%", ours, other)


def _head_biases(evidence: Evidence) -> Intervals:
    for initial in scales.INITIAL_SPARSITIES:
        found = _started(evidence, initial)
        yield found and interval(f"{100 * initial:g}%", sparsity(found.result, "head/bias"))


def _by_depth(evidence: Evidence, names: Sequence[str]) -> Intervals:
    """The differences from each tensor to the next deeper one."""
    found = _started(evidence, 0.5)
    for shallow, deep in itertools.pairwise(names):
        yield found and _fall(found, shallow, deep)


def _fall(found: Found, shallow: str, deep: str) -> Interval:
    layers = [name.split("/")[0] for name in (shallow, deep)]
    pair = [sparsity(found.result, name) for name in (shallow, deep)]
    return difference(" - ".join(layers), *pair)


def _turns(evidence: Evidence) -> Intervals:
    found = _started(evidence, 0.5)
    if found is not None:
        pairs = list(itertools.pairwise(_GAINS))
        falls = [_fall(found, *pair) for pair in pairs]
        rises = [_fall(found, deep, shallow) for shallow, deep in pairs]
        for steps in (rises, falls):
            yield max(steps, key=lambda step: step.mean).of_several(len(steps))


def _by_width(evidence: Evidence) -> Intervals:
    flags, runner = evidence.table("figure s2")
    found = {
        width: found_run(runner, *scales.swept(flags, 5, "sparse-maml", width=width))
        for width in scales.WIDTHS
    }
    there = [width for width in scales.WIDTHS if found[width] is not None]
    for narrow, wide in itertools.pairwise(there):
        pair = [run and sparsity(run.result) for run in (found[narrow], found[wide])]
        if pair[0] and pair[1]:
            yield difference(f"{narrow} - {wide}", pair[0], pair[1])


def _by_steps(evidence: Evidence, method: str) -> Intervals:
    flags, runner = evidence.table("figure s2")

    def run(steps: int) -> Found | None:
        return found_run(runner, *scales.with_steps(flags, 5, method, steps))

    for steps in scales.STEPS:
        if steps > _FEW_STEPS:
            yield _gain(f"K = {steps}", run(steps), run(_FEW_STEPS))


# ---- Table S1


def _resnets() -> Iterator[Claim]:
    for setting in SETTINGS["table S1", "cpu"]:
        for method in _SPARSE:
            yield _better("Table S1", "table S1", setting, method, "fomaml")
        yield Claim(
            "An ensemble of 3 epochs adds 2 to 4 points", "Table S1", setting.label, _MORE,
            Wanted(2.0, 4.0), partial(_ensembles, setting=setting),
        )  # fmt: skip
        yield Claim(
            "More parameters freeze with 1 shot than with 5", "Table S1", setting.label, LESS,
            POSITIVE, partial(_by_shots, setting=setting),
        )  # fmt: skip


def _ensembles(evidence: Evidence, setting: Setting) -> Intervals:
    flags, runner = evidence.table("table S1")
    for shots in SHOTS:
        for method in setting.methods:
            found = found_run(runner, *setting.run(flags, shots, method))
            yield found and difference(
                f"{METHODS[method]}, {shots}-shot", of_seeds(found.result, "ensemble_accuracy"),
                of_seeds(found.result),
            )  # fmt: skip


def _by_shots(evidence: Evidence, setting: Setting) -> Intervals:
    flags, runner = evidence.table("table S1")
    for method in _SPARSE:
        one, five = (found_run(runner, *setting.run(flags, shots, method)) for shots in SHOTS)
        if one is not None and five is not None:
            yield difference(METHODS[method], sparsity(one.result), sparsity(five.result))


# ---- Tables S3 and S4


def _norms() -> Iterator[Claim]:
    (setting,) = SETTINGS["table S3", "cpu"]
    runs = f"{setting.label}, 5-shot"
    yield Claim(
        "sparse-MAML keeps its accuracy without biases", "Table S3", runs,
        "accuracy lost without biases", Wanted(high=2.0), _without_biases,
    )  # fmt: skip
    yield Claim(
        "Accuracy falls without transductive batch norm", "Table S3", runs,
        "accuracy lost, by method and statistics", POSITIVE, _not_transductive,
    )  # fmt: skip
    yield Claim(
        "Without transductive batch norm, sparse-MAML has no advantage", "Table S3", runs,
        "sparse-MAML minus FOMAML, by statistics", _NO_GAIN, _no_advantage,
    )  # fmt: skip


def _variant(evidence: Evidence, method: str, variant: str) -> Found | None:
    (setting,) = SETTINGS["table S3", "cpu"]
    flags, runner = evidence.table("table S3")
    return found_run(runner, *setting.run(flags, 5, method, **dict(VARIANTS)[variant]))


def _without_biases(evidence: Evidence) -> Intervals:
    pair = [_variant(evidence, "sparse-maml", name) for name in ("transductive", "no biases")]
    yield _gain("with - without", *pair)


def _not_transductive(evidence: Evidence) -> Intervals:
    for method in ("sparse-maml", "fomaml"):
        for variant in ("support", "running"):
            pair = [_variant(evidence, method, name) for name in ("transductive", variant)]
            yield _gain(f"{METHODS[method]}, {variant}", *pair)


def _no_advantage(evidence: Evidence) -> Intervals:
    for variant in ("support", "running"):
        pair = [_variant(evidence, method, variant) for method in ("sparse-maml", "fomaml")]
        yield _gain(variant, *pair)


def _phases() -> Iterator[Claim]:
    (setting,) = SETTINGS["table S4", "cpu"]
    yield Claim(
        "A mask that is learned after theta does not help", "Table S4", setting.label,
        "accuracy gained, by shots and initial sparsity; alpha also changes, from 0.1 to 0.4",
        _NO_GAIN, _second_phase_gain,
    )  # fmt: skip
    yield Claim(
        "theta and mask learned together are better than one after the other", "Table S4",
        setting.label, _MORE, POSITIVE, _together,
    )  # fmt: skip


def _second(evidence: Evidence, shots: int, initial: float) -> Found | None:
    flags, runner = evidence.table("table S4")
    return found_run(runner, *second_phase(flags, runner, shots, initial))


def _second_phase_gain(evidence: Evidence) -> Intervals:
    (setting,) = SETTINGS["table S4", "cpu"]
    flags, runner = evidence.table("table S4")
    for shots in SHOTS:
        first = found_run(runner, *setting.run(flags, shots, "fomaml"))
        for initial in (0.0, 0.5):
            label = f"{shots}-shot, {100 * initial:g}%"
            yield _gain(label, _second(evidence, shots, initial), first)


def _together(evidence: Evidence) -> Intervals:
    flags, runner = evidence.table("table 1")
    for shots in SHOTS:
        ours = of_method(flags, runner, _FIGURES, shots, "sparse-maml")
        for initial in (0.0, 0.5):
            label = f"{shots}-shot, {100 * initial:g}%"
            yield _gain(label, ours, _second(evidence, shots, initial))
