"""The harness: forms that are checked against each other, then timed in turn."""

import collections
import dataclasses
import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import probe
from benchmarks.families import Family, Form, Trees

# Relative L2 error of the updated parameters, and of the change that made them: the latter holds
# what the frameworks round differently, the max and ReLU ties that this tips over, and what later
# inner steps make of it (at 84x84 PyTorch's own two layouts are up to 3% from float64 after 35).
# A lower precision's change is reported, not judged: how far it may be off the reader has to say.
LIMITS = {"result": 1e-3, "change": 0.1}
LOW_PRECISION_LIMITS = {"result": 1e-2}


class Mismatch(Exception):
    """Two forms do not do the same arithmetic; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
      device: "cpu" or "gpu".
      precision: of matrix products and convolutions.
      repeats: timed steps of each form.
      probe: measure compilation and memory, in fresh processes.
    """

    device: str = "cpu"
    precision: str = "float32"
    repeats: int = 9
    probe: bool = True

    @property
    def limits(self) -> dict[str, float]:
        """The relative errors that are allowed at this precision."""
        return LIMITS if self.precision == "float32" else LOW_PRECISION_LIMITS


# ---- the same arithmetic


class Reference(NamedTuple):
    """What the first steps have to give.

    Attributes:
      start: the trees before them.
      result: the trees after them.
      change: how they change the trees: meta-gradients, or differences.
    """

    start: Trees
    result: Trees
    change: Trees


def reference_step(form: Form, start: Trees) -> Reference:
    """Take the step that the others have to agree with."""
    form.step()
    result = form.result()
    return Reference({tree: start[tree] for tree in result}, result, change(form, start))


def change(form: Form, start: Trees) -> Trees:
    """How the first step changes the parameters: the meta-gradient where it is to be had.

    The difference of the parameters is known to fewer digits: float32 rounds their sum.
    """
    if hasattr(form, "meta_gradient"):
        return form.meta_gradient()
    return difference(form.result(), start)


def difference(trees: Trees, start: Trees) -> Trees:
    """`trees` - `start`, leaf by leaf."""
    return {t: {n: x - start[t][n] for n, x in leaves.items()} for t, leaves in trees.items()}


def check(
    name: str,
    form: Form,
    reference: Reference,
    limits: Mapping[str, float] = LIMITS,
    after: str = "one step",
) -> dict[str, Any]:
    """Relative L2 errors of a form after its first steps: of the results, of the changes.

    Raises:
      Mismatch: one is larger than its limit.
    """
    errors = {
        "result": relative_errors(form.result(), reference.result),
        "change": relative_errors(change(form, reference.start), reference.change),
    }
    for kind, limit in limits.items():
        for tree, error in errors[kind].items():
            what = "updated" if kind == "result" else "change of the"
            require(name, f"after {after} its {what} {tree} differ", error, limit)
    return errors


def require(name: str, what: str, error: float, limit: float) -> None:
    """Accept a relative L2 error of the form `name` up to the limit.

    Raises:
      Mismatch: it is larger, or NaN.
    """
    if not error <= limit:
        raise Mismatch(
            f"{name} does not do the same arithmetic: {what} by {error:.1e} (relative L2), at most"
            f" {limit:.0e} is allowed"
        )


def relative_errors(got: Trees, wanted: Trees) -> dict[str, float]:
    """|got - wanted| / |wanted| of each tree, over all of its leaves."""
    return {
        tree: _norm(got[tree][name] - x for name, x in leaves.items()) / _norm(leaves.values())
        for tree, leaves in wanted.items()
    }


def _norm(arrays: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in arrays)))


def require_finite(name: str, trees: Trees) -> None:
    """Accept numbers.

    Raises:
      Mismatch: there are others.
    """
    for tree, leaves in trees.items():
        if not all(np.isfinite(x).all() for x in leaves.values()):
            raise Mismatch(f"{name} diverged while it was timed: its {tree} are not finite")


# ---- time


def in_turn(actions: Mapping[Any, Callable[[int], Any]], rounds: int) -> dict[Any, list[Any]]:
    """What each action returns in each round, of which it is given the number.

    Every round starts with another one, so that what disturbs the machine for a while disturbs all
    of them.
    """
    names = list(actions)
    out: dict[Any, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            time.sleep(0.02)  # the last action's threads spin for a moment before they sleep
            out[name].append(actions[name](number))
    return out


def timed(
    steps: Mapping[Any, Callable[[], Any]], repeats: int, warm_up: bool = True
) -> dict[Any, list[float]]:
    """Seconds of `repeats` calls of each step, taken in turn."""
    if warm_up:
        for step in steps.values():
            step()
    gc.collect()
    return in_turn({n: functools.partial(_seconds_of, s) for n, s in steps.items()}, repeats)


def _seconds_of(step: Callable[[], Any], _: int) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


class Stopwatch:
    """Seconds by part of a run, in `seconds`, a list for each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)

    def timed(self, part: str, function: Callable, *args: Any) -> Any:
        """What the function returns; its seconds are noted."""
        begun = time.perf_counter()
        out = function(*args)
        self.seconds[part].append(time.perf_counter() - begun)
        return out


# ---- a case


def compare(
    family: Family,
    case: Any,
    forms: Sequence[str],
    setting: Setting,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Check that the forms agree on one step of the case, then time them.

    Returns:
      The case, its flops, the fastest of PyTorch's forms as "peer", and one row for each form.

    Raises:
      Mismatch: a form's step gives other parameters than ours in float32.
    """
    rows: dict[str, dict[str, Any]] = {
        form: {"form": form} for form in forms if family.fits(form, case)
    }
    if setting.probe:
        for form, row in rows.items():
            say(f"{case.name}: {form} in a process of its own")
            row |= _probes(family, form, case, setting)
    say(f"{case.name}: one step of each, compared")
    checked = agreeing(family, case, rows, setting)
    say(f"{case.name}: {setting.repeats} rounds")
    seconds = timed({name: form.step for name, form in checked.items()}, setting.repeats)
    for name, stepped in checked.items():
        require_finite(name, stepped.result())
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    peer = min((n for n in family.peers if n in medians), key=lambda n: medians[n], default=None)
    for name, median in medians.items():
        rows[name] |= {
            "seconds": seconds[name],
            "median_s": median,
            "ms_per_inner_step": 1e3 * median / case.inner_steps_taken,
            "tasks_per_s": case.tasks_taken / median,
            "flops_per_s": case.flops() / median,
            "ratio": median / medians[peer] if peer else None,
        }
    return {
        "case": dataclasses.asdict(case),
        "name": case.name,
        "flops": case.flops(),
        "peer": peer,
        "rows": list(rows.values()),
    }


def agreeing(
    family: Family, case: Any, rows: Mapping[str, dict[str, Any]], setting: Setting
) -> dict[str, Form]:
    """The forms after their first step, each checked; its row gets the errors, or why it failed.

    Raises:
      Mismatch: a form's step gives other parameters than ours in float32.
    """
    arrays = case.draw()
    # Always ours in float32, so that a lower precision's error is seen beside its speed.
    ours = family.make(family.ours, case, arrays, setting.device)
    reference = reference_step(ours, arrays)
    out: dict[str, Form] = {}
    for name, row in rows.items():
        if "failed" in row:
            continue
        if name == family.ours and setting.precision == "float32":
            form = ours
        else:
            try:
                form = family.make(name, case, arrays, setting.device, setting.precision)
                form.step()
            except Exception as error:
                if not _may_fail(family, name, str(error)):
                    raise
                row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
                continue
        row["errors"] = check(name, form, reference, setting.limits)
        out[name] = form
    return out


def _probes(family: Family, form: str, case: Any, setting: Setting) -> dict[str, Any]:
    """A form's first start, and for one that compiles the second, from the cache."""
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
