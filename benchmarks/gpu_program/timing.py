"""The cases timed on a GPU, beside the lower bounds of the programs that ran."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import report
from benchmarks.gpu_program.account import account
from benchmarks.gpu_program.cases import Case
from benchmarks.gpu_program.measure import about, label
from benchmarks.report import Section
from jaxsparse.maml import TaskLoop

TITLE = "Our programs on a GPU, and what they would need at least on an NVIDIA H200"
COLUMNS = ("case", "measured ms", "bound ms", "measured / bound", "kernels", "temp MB", "compile s")
LEGEND = (
    "measured: median of the repeats, from the call until the results are ready, on random"
    " arguments that are already on the device.",
    "bound: as in `python -m benchmarks.gpu_program`, of the program that this device ran, at the"
    " rates of an NVIDIA H200. temp MB: temporary memory.",
)


def time_case(case: Case, task_loop: TaskLoop, precision: str, repeats: int) -> dict[str, Any]:
    """Compile a case for JAX's default device and time it there.

    Args:
      case: the case.
      task_loop: how the tasks of a batch are looped over.
      precision: of matrix products and convolutions.
      repeats: timed calls, after one that is not timed.

    Returns:
      A dict for JSON: the settings, seconds of every call, the median in ms, the bound of the
      program, temporary memory, versions. Or, if the device has too little memory, "failed".

    Examples:
      >>> time_case(all_cases()["glance-mlp-1-seed"], "auto", "float32", 3)["measured_ms"]
    """
    entry: dict[str, Any] = {
        "name": case.name,
        "group": case.group,
        "unit": case.unit,
        "task_loop": task_loop if case.over_tasks else "auto",
        "precision": precision,
        "device": jax.devices()[0].device_kind,
        **about(),
    }
    try:
        return entry | _timed(case, task_loop, precision, repeats)
    except jax.errors.JaxRuntimeError as error:  # out of memory: the other cases may still fit
        return entry | {"failed": " ".join(str(error).split())[:200]}


def _timed(case: Case, task_loop: TaskLoop, precision: str, repeats: int) -> dict[str, Any]:
    made = case.make(task_loop)
    function: Any = made.function
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    args = jax.block_until_ready(jax.jit(made.draw)(jax.random.key(0)))
    begun = time.perf_counter()
    with jax.default_matmul_precision(precision):
        compiled: Any = jitted.lower(*args).compile()
    compile_s = time.perf_counter() - begun
    seconds = [_seconds(compiled, args) for _ in range(repeats + 1)][1:]
    return {
        "compile_s": round(compile_s, 1),
        "seconds": seconds,
        "measured_ms": 1e3 * statistics.median(seconds),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        **_bound(case, compiled, precision),
    }


def _seconds(compiled: Callable, args: Any) -> float:
    # Copies: some programs take over the memory of their arguments.
    args = jax.block_until_ready(jax.tree.map(jnp.copy, args))
    begun = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    return time.perf_counter() - begun


def _bound(case: Case, compiled: Any, precision: str) -> dict[str, Any]:
    """The account of the program that ran; the CPU has none."""
    if jax.default_backend() == "cpu":
        return {}
    rate = "float32" if precision == "float32" else "tensorfloat32"
    try:
        found = account(compiled.as_text(), trips=case.trips, branches=case.branches)
    except Exception as error:  # a program of a form not seen before must not cost the measurement
        return {"bound_failed": f"{type(error).__name__}: {error}"[:200]}
    totals = found.entry.once()
    return {
        **totals.as_entry(),
        "bound_ms": 1e3 * getattr(totals, rate),
        "uncounted": list(found.uncounted),
        "unknown_loops": len(found.unknown_loops),
    }


# ---- tables


def sections(entries: Iterable[Mapping[str, Any]]) -> list[Section]:
    """A table for each group of cases."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(entry["group"], []).append(entry)
    return [_section(name, group) for name, group in groups.items()]


def _section(name: str, entries: list[Mapping[str, Any]]) -> Section:
    units = dict.fromkeys(entry["unit"] for entry in entries)
    notes = [
        f"{label(entry)}: {what}: {entry[key]}."
        for entry in entries
        for key, what in (("failed", "not measured"), ("bound_failed", "without a bound"))
        if key in entry
    ]
    rows = [_row(entry) for entry in entries if "failed" not in entry]
    return Section(f"{name}: one {' or one '.join(units)}", COLUMNS, rows, notes)


def _row(entry: Mapping[str, Any]) -> list[str]:
    measured, bound = entry["measured_ms"], entry.get("bound_ms")
    return [
        label(entry),
        f"{measured:.4g}",
        f"{bound:.4g}" if bound else "-",
        f"{measured / bound:.2f}" if bound else "-",
        f"{entry['kernels']:.0f}" if bound else "-",
        f"{entry['temp_bytes'] / 1e6:.0f}",
        f"{entry['compile_s']:.1f}",
    ]


def markdown(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables as a document."""
    known = list(entries.values())
    versions = {", ".join(f"{k} {v}" for k, v in entry["versions"].items()) for entry in known}
    devices = dict.fromkeys(entry["device"] for entry in known)
    dates = sorted(entry["date"][:10] for entry in known)
    line = f"{', '.join(devices)}; {'; '.join(sorted(versions))}; {dates[0]} to {dates[-1]}"
    return report.document(TITLE, line, sections(known), after=LEGEND)
