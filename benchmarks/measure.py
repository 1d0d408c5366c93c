"""Contestants checked against each other, then timed in turn."""

import dataclasses
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import probe
from benchmarks.command import Mismatch
from benchmarks.families import Contestant, Family, Trees

# Relative L2 error of the updated parameters, and of the change that made them: the latter holds
# what the frameworks round differently, the max and ReLU ties that this tips over, and what later
# inner steps make of it (at 84x84 PyTorch's own two layouts are up to 3% from float64 after 35).
# A lower precision's change is reported, not judged: how far it may be off the reader has to say.
LIMITS = {"result": 1e-3, "change": 0.1}
LOW_PRECISION_LIMITS = {"result": 1e-2}


@dataclasses.dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
      device: "cpu" or "gpu".
      precision: of matrix products and convolutions.
      repeats: timed steps of each contestant.
      probe: measure compilation and memory, in fresh processes.
    """

    device: str = "cpu"
    precision: str = "float32"
    repeats: int = 9
    probe: bool = True


class Reference(NamedTuple):
    """What one step has to give."""

    start: Trees
    result: Trees
    change: Trees


def compare(
    family: Family,
    case: Any,
    forms: Sequence[str],
    setting: Setting,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Check that the contestants agree on one step of the case, then time them.

    Returns:
      The case, its flops, the fastest of PyTorch's forms as "peer", and one row for each form.

    Raises:
      Mismatch: a contestant's step gives other parameters than ours in float32.
    """
    rows: dict[str, dict[str, Any]] = {
        form: {"form": form} for form in forms if family.fits(form, case)
    }
    if setting.probe:
        for form, row in rows.items():
            say(f"{case.name}: {form} in a process of its own")
            row |= _probes(family, form, case, setting)
    contestants = _agreeing(family, case, rows, setting, say)
    say(f"{case.name}: {setting.repeats} rounds")
    seconds = timed(contestants, setting.repeats)
    for form, contestant in contestants.items():
        _check_finite(form, contestant)
        rows[form]["seconds"] = seconds[form]
    peers = [form for form in family.peers if form in seconds]
    peer = min(peers, key=lambda form: statistics.median(seconds[form]), default=None)
    for form in seconds:
        rows[form] |= _figures(case, seconds[form], seconds[peer] if peer else None)
    return {
        "case": dataclasses.asdict(case),
        "name": case.name,
        "flops": case.flops(),
        "peer": peer,
        "rows": list(rows.values()),
    }


def timed(contestants: Mapping[Any, Contestant], repeats: int) -> dict[Any, list[float]]:
    """Seconds of `repeats` steps of each, after one to warm up, taken in turn.

    Every round starts with another contestant, so that what disturbs the machine for a while
    disturbs all of them.
    """
    names = list(contestants)
    seconds: dict[Any, list[float]] = {name: [] for name in names}
    for contestant in contestants.values():
        contestant.step()
    gc.collect()
    for round_number in range(repeats):
        first = round_number % max(1, len(names))
        for name in names[first:] + names[:first]:
            time.sleep(0.02)  # the last contestant's threads spin for a moment before they sleep
            start = time.perf_counter()
            contestants[name].step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def reference_step(contestant: Contestant, start: Trees) -> Reference:
    """Take the step that the others have to agree with."""
    contestant.step()
    result = contestant.result()
    return Reference({t: start[t] for t in result}, result, change(contestant, start))


def change(contestant: Contestant, start: Trees) -> Trees:
    """How the first step changes the parameters: the meta-gradient where it is to be had.

    The difference of the parameters is known to fewer digits: float32 rounds their sum.
    """
    if hasattr(contestant, "meta_gradient"):
        return contestant.meta_gradient()
    return {
        tree: {name: x - start[tree][name] for name, x in leaves.items()}
        for tree, leaves in contestant.result().items()
    }


def check(
    form: str, contestant: Contestant, reference: Reference, precision: str = "float32"
) -> dict[str, Any]:
    """Relative L2 errors of a contestant after its first step: of the results, of the changes.

    Raises:
      Mismatch: they are larger than what the precision allows.
    """
    errors = {
        "result": relative_errors(contestant.result(), reference.result),
        "change": relative_errors(change(contestant, reference.start), reference.change),
    }
    limits = LIMITS if precision == "float32" else LOW_PRECISION_LIMITS
    for kind, limit in limits.items():
        for tree, error in errors[kind].items():
            if not error <= limit:  # so that NaN is a mismatch, too
                what = "updated" if kind == "result" else "change of the"
                raise Mismatch(
                    f"{form} does not do the same arithmetic: after one step its {what} {tree}"
                    f" differ by {error:.1e} (relative L2), at most {limit:.0e} is allowed"
                )
    return errors


def relative_errors(got: Trees, wanted: Trees) -> dict[str, float]:
    """|got - wanted| / |wanted| of each tree, over all of its leaves."""
    return {
        tree: _norm(got[tree][name] - x for name, x in leaves.items()) / _norm(leaves.values())
        for tree, leaves in wanted.items()
    }


def _norm(arrays: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays)))


def _agreeing(
    family: Family,
    case: Any,
    rows: dict[str, dict[str, Any]],
    setting: Setting,
    say: Callable[[str], None],
) -> dict[str, Contestant]:
    """The contestants after their first step, each checked; a row gets its errors or why not."""
    say(f"{case.name}: one step of each, compared")
    arrays = family.draw(case)
    # Always ours in float32, so that a lower precision's error is seen beside its speed.
    ours = family.make(family.ours, case, arrays, setting.device)
    reference = reference_step(ours, arrays)
    out: dict[str, Contestant] = {}
    for form, row in rows.items():
        if "failed" in row:
            continue
        if form == family.ours and setting.precision == "float32":
            contestant = ours
        else:
            try:
                contestant = family.make(form, case, arrays, setting.device, setting.precision)
                contestant.step()
            except Exception as error:
                if not _may_fail(family, form, str(error)):
                    raise
                row["failed"] = _reason(error)
                continue
        row["errors"] = check(form, contestant, reference, setting.precision)
        out[form] = contestant
    return out


def _probes(family: Family, form: str, case: Any, setting: Setting) -> dict[str, Any]:
    """A contestant's first start, and for one that compiles the second, from the cache."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="jaxsparse-benchmark-") as cache:
        for start in ("cold", "warm") if form in family.compiled else ("cold",):
            try:
                out[start] = probe.in_new_process(
                    family, form, case, setting.device, setting.precision, cache=Path(cache)
                )
            except probe.ProbeError as error:
                if not _may_fail(family, form, str(error)):
                    raise
                return {"failed": str(error)}
    return out


def _may_fail(family: Family, form: str, message: str) -> bool:
    return form in family.optional or "out of memory" in message.lower()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _check_finite(form: str, contestant: Contestant) -> None:
    for tree, leaves in contestant.result().items():
        if not all(np.isfinite(x).all() for x in leaves.values()):
            raise Mismatch(f"{form} diverged while it was timed: its {tree} are not finite")


def _figures(case: Any, seconds: list[float], peer: list[float] | None) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "median_s": median,
        "ms_per_inner_step": 1e3 * median / case.inner_steps_taken,
        "tasks_per_s": case.tasks_taken / median,
        "flops_per_s": case.flops() / median,
        "ratio": median / statistics.median(peer) if peer else None,
    }
