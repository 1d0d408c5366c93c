"""Curves: time and memory of the meta-step against one setting at a time."""

import concurrent.futures
import dataclasses
import gc
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import probe, report
from benchmarks.cases_fewshot import FewShotCase
from benchmarks.families import SPARSE_MAML
from benchmarks.harness import Setting, agreeing, timed
from jaxsparse.machine import cores

OURS, CONTEXT = "jaxsparse", "channels_last"
TOLERANCE = 0.05
BASE = FewShotCase(tasks=2, width=32)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Cases that differ in one setting.

    Attributes:
      name: name of the setting.
      label: label of the axis.
      cases: value of the setting -> case.
      forms: names of the forms that are measured.
    """

    name: str
    label: str
    cases: dict[int, FewShotCase]
    forms: tuple[str, ...] = (OURS, CONTEXT)


def curves(base: FewShotCase = BASE) -> tuple[Curve, ...]:
    """The curves through `base`."""

    def along(field: str, values: Sequence[int]) -> dict[int, FewShotCase]:
        fields: dict[str, Any] = dataclasses.asdict(base)
        return {value: FewShotCase(**{**fields, field: value}) for value in values}

    sizes = {
        size: dataclasses.replace(base, image=(size, size, base.image[2]))
        for size in (28, 42, 56, 84)
    }
    return (
        Curve("inner steps", "inner steps K", along("inner_steps", (1, 2, 5, 10, 20, 50, 100))),
        Curve("tasks", "tasks", along("tasks", (1, 2, 4, 8, 16, 32, 64))),
        Curve("width", "width", along("width", (16, 32, 64, 128))),
        Curve("seeds", "seeds", along("seeds", (1, 2, 4, 8)), ("seeds vmapped", "seeds mapped")),
        Curve("image size", "image size, pixels", sizes),
    )


def trace(
    curve: Curve,
    forms: Sequence[str],
    setting: Setting,
    cache: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure every point of a curve: time in this process, in turn; memory in fresh processes.

    Our forms are always measured, PyTorch's form only if it is in `forms`. `cache` holds compiled
    programs for the fresh processes. Forms that disagree on the first step are a `Mismatch`.
    """
    shown = [form for form in curve.forms if form != CONTEXT or form in forms]
    say(f"{curve.name}: compiling")
    forms_at = {
        (x, name): form
        for x, case in curve.cases.items()
        for name, form in agreeing(SPARSE_MAML, case, {name: {} for name in shown}, setting).items()
    }
    say(f"{curve.name}: timing {setting.repeats} rounds of {len(forms_at)} meta-steps")
    seconds = timed({point: form.step for point, form in forms_at.items()}, setting.repeats)
    forms_at.clear()
    gc.collect()
    rows = [
        {"x": x, "form": form, "median_s": statistics.median(runs), "seconds": runs}
        for (x, form), runs in seconds.items()
    ]
    if setting.probe:
        say(f"{curve.name}: measuring memory")
        memories = _memories([(form, curve.cases[x]) for x, form in seconds], setting, cache)
        rows = [{**row, **memory} for row, memory in zip(rows, memories, strict=True)]
    base = dataclasses.asdict(next(iter(curve.cases.values())))
    return {"name": curve.name, "label": curve.label, "first_case": base, "points": rows}


def _memories(
    points: Sequence[tuple[str, FewShotCase]], setting: Setting, cache: Path
) -> list[dict[str, int]]:
    # One process per core at a time: time does not matter here. On a GPU, one after the other.
    workers = cores() if setting.device == "cpu" else 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda point: _memory(point[0], point[1], setting, cache), points))


def _memory(form: str, case: FewShotCase, setting: Setting, cache: Path) -> dict[str, int]:
    # Again if the cache did not have a program, as compilation needs more memory than the steps.
    # This happens: the cache's keys also depend on how often parts of a program were traced before.
    for _ in range(2):
        done = probe.in_new_process(
            SPARSE_MAML, form, case, setting.device, setting.precision, cache=cache, steps=2
        )
        if not done["cache_misses"]:
            break
    peak, base = done["peak_bytes"], done["base_bytes"]
    program = {name: done[name] for name in ("temp_bytes",) if name in done}
    return {"peak_bytes": peak, "base_bytes": base, "own_bytes": peak - base, **program}


def verdicts(traced: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check two promises on our curves: constant memory in K, constant time per task."""
    found = {curve["name"]: curve["points"] for curve in traced}
    out = []
    for what, field in (
        ("growth of the process's memory", "own_bytes"),
        ("temporary memory of the compiled program", "temp_bytes"),
    ):
        steps = _of_ours(found.get("inner steps", []), field)
        if {5, 100} <= steps.keys():
            out.append(_verdict(f"{what}, K = 100 / K = 5", steps[100] / steps[5]))
    tasks = _of_ours(found.get("tasks", []), "median_s")
    if len(tasks) > 1:
        per_task = {count: seconds / count for count, seconds in tasks.items()}
        first = per_task.pop(min(per_task))
        out.append(_verdict("time per task, largest / with 1 task", max(per_task.values()) / first))
    return out


def _of_ours(points: Sequence[dict[str, Any]], field: str) -> dict[int, float]:
    return {p["x"]: p[field] for p in points if p["form"] == OURS and field in p}


def _verdict(what: str, ratio: float) -> dict[str, Any]:
    return {"what": what, "ratio": ratio, "limit": 1 + TOLERANCE, "holds": ratio <= 1 + TOLERANCE}


def verdict_line(verdict: dict[str, Any]) -> str:
    """A verdict as a sentence."""
    word = "holds" if verdict["holds"] else "DOES NOT HOLD"
    return f"{verdict['what']}: {verdict['ratio']:.3f} (at most {verdict['limit']:.2f}): {word}"


def section(curve: dict[str, Any]) -> report.Section:
    """The table of a curve."""
    name = curve["name"]
    columns = (name, "form", "ms per meta-step", f"ms / {name}", "memory growth, MB")
    rows = [
        [
            str(point["x"]),
            point["form"],
            f"{1e3 * point['median_s']:.1f}",
            f"{1e3 * point['median_s'] / point['x']:.2f}",
            *(
                f"{point[field] / 1e6:.1f}" if field in point else "-"
                for field in ("own_bytes", "temp_bytes")
            ),
        ]
        for point in curve["points"]
    ]
    return report.Section(name, (*columns, "program, MB"), rows)
