"""The account of a case, as an entry of the results."""

import datetime
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.gpu_program import target
from benchmarks.gpu_program.account import Account, Totals, account
from benchmarks.gpu_program.cases import Case
from benchmarks.machine import installed
from jaxsparse.maml import TaskLoop

_LARGEST = 12  # kernels in the results
_PACKAGES = ("jaxsparse", "jax", "jaxlib", *target.PLUGINS)


def about() -> dict[str, Any]:
    """Versions of what is installed and the time, which are stored with the numbers."""
    return {
        "versions": installed(_PACKAGES),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def label(entry: Mapping[str, Any]) -> str:
    """The name of an entry: that of its case, and what is not the default."""
    loop = entry["task_loop"]
    other = [f"{loop} at once" if isinstance(loop, int) else loop, entry["precision"]]
    return ", ".join([entry["name"], *(x for x in other if x not in ("auto", "float32"))])


def measure(case: Case, task_loop: TaskLoop, precision: str) -> dict[str, Any]:
    """Compile a case and account for it.

    Args:
      case: the case.
      task_loop: how the tasks of a batch are looped over.
      precision: of matrix products and convolutions, in `jax.default_matmul_precision`'s words.

    Returns:
      A dict for JSON: the settings, the totals of the program and of an inner step, temporary
      memory in bytes, the kernels with the most time, and versions.

    Raises:
      jax.errors.JaxRuntimeError: the case does not compile for a GPU.

    Examples:
      >>> measure(all_cases()["glance-mlp-1-seed"], "auto", "float32")["inner_step"]["kernels"]
      18.0
    """
    made = case.make(task_loop)
    begun = time.perf_counter()
    compiled = target.compile_for_gpu(made.function, *made.shapes(), precision=precision)
    seconds = time.perf_counter() - begun
    memory = compiled.memory_analysis()
    found = account(compiled.as_text(), trips=case.trips, branches=case.branches)
    return {
        "name": case.name,
        "group": case.group,
        "unit": case.unit,
        "task_loop": task_loop if case.over_tasks else "auto",
        "precision": precision,
        "inner_steps": case.inner_steps,
        **found.entry.once().as_entry(),
        "inner_step": found.entry.inner_step(case.inner_steps).as_entry(),
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "uncounted": list(found.uncounted),
        "unknown_loops": len(found.unknown_loops),
        "compile_s": round(seconds, 1),
        "largest": largest(found),
        **about(),
    }


def largest(found: Account) -> list[dict[str, Any]]:
    """The kernels with the most time in float32, each with the totals of one run of it."""
    return [
        {"name": kernel.name, "op": kernel.op, "times": times, **_once(kernel.totals)}
        for times, kernel in found.entry.largest(_LARGEST)
    ]


def _once(totals: Totals) -> dict[str, Any]:
    return {name: value for name, value in totals.as_entry().items() if name != "kernels"}
