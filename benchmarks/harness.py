"""The harness: checks that forms agree, then times them in turn."""

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

# Limits of the relative L2 error of the updated parameters, and of their change in the first step.
# The change also contains the different rounding of the frameworks, the ReLUs and maxima that it
# flips, and the amplification by later inner steps. (At 84x84 and K = 35, PyTorch's own two layouts
# differ from float64 by up to 3%.) In lower precision, the change is reported but has no limit.
LIMITS = {"result": 1e-3, "change": 0.1}
LOW_PRECISION_LIMITS = {"result": 1e-2}


class Mismatch(Exception):
    """Two forms compute different results; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
      device: "cpu" or "gpu".
      precision: precision of matrix products and convolutions.
      repeats: timed steps of each form.
      probe: whether to measure compilation and memory, in fresh processes.
    """

    device: str = "cpu"
    precision: str = "float32"
    repeats: int = 9
    probe: bool = True

    @property
    def limits(self) -> dict[str, float]:
        """The limits of relative errors at this precision."""
        return LIMITS if self.precision == "float32" else LOW_PRECISION_LIMITS


# ---- do the forms agree?


class Reference(NamedTuple):
    """The required outcome of the first steps.

    Attributes:
      start: the trees before the steps.
      result: the trees after the steps.
      change: the change of the trees: meta-gradients, or differences.
    """

    start: Trees
    result: Trees
    change: Trees


def reference_step(form: Form, start: Trees) -> Reference:
    """Take the step that the other forms must agree with."""
    form.step()
    result = form.result()
    return Reference({tree: start[tree] for tree in result}, result, change(form, start))


def change(form: Form, start: Trees) -> Trees:
    """The change by the first step: the meta-gradient, or else the difference of the parameters.

    The meta-gradient is more precise, since updated parameters are rounded to float32.
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
    """Relative L2 errors of the results and changes after a form's first steps.

    An error above its limit is a `Mismatch`.
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
    """Raise `Mismatch` if a relative L2 error of the form `name` is above the limit, or NaN."""
    if not error <= limit:
        raise Mismatch(
            f"{name} does not do the same arithmetic: {what} by {error:.1e} (relative L2), the"
            f" limit is {limit:.0e}"
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
    """Raise `Mismatch` if a form's values are not finite after it was timed."""
    for tree, leaves in trees.items():
        if not all(np.isfinite(x).all() for x in leaves.values()):
            raise Mismatch(f"{name} diverged while it was timed: its {tree} are not finite")


# ---- time


def in_turn(actions: Mapping[Any, Callable[[int], Any]], rounds: int) -> dict[Any, list[Any]]:
    """Call all actions in each round with the round's number; returns the results by action.

    Each round starts with another action, so that a disturbance of the machine affects all.
    """
    names = list(actions)
    out: dict[Any, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            time.sleep(0.02)  # let the last action's threads stop spinning
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
    """Collects seconds by part of a run, in `seconds`: part -> list."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)

    def timed(self, part: str, function: Callable, *args: Any) -> Any:
        """Call a function and record its seconds."""
        start = time.perf_counter()
        out = function(*args)
        self.seconds[part].append(time.perf_counter() - start)
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
      Mismatch: a form disagrees with ours in float32.
    """
    rows: dict[str, dict[str, Any]] = {
        form: {"form": form} for form in forms if family.fits(form, case)
    }
    if setting.probe:
        for form, row in rows.items():
            say(f"{case.name}: measuring {form} in a fresh process")
            row |= _probes(family, form, case, setting)
    say(f"{case.name}: comparing one step of each form")
    checked = agreeing(family, case, rows, setting)
    say(f"{case.name}: timing {setting.repeats} rounds")
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
    """The forms after their first step, checked. Adds each form's errors or failure to its row."""
    arrays = case.draw()
    # The reference is always ours in float32: a lower precision is shown with its error.
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
    """Measure a form's first start and, if it is compiled, a second start with a warm cache."""
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
