"""The command: flags, results and files.

python -m benchmarks.gpu_program
python -m benchmarks.gpu_program --cases conv4-84-5-shot-4-tasks --kernels 12
python -m benchmarks.gpu_program --cases glance cmaml resnet12 --precision tensorfloat32
python -m benchmarks.gpu_program --cases table-s2
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.command import RESULTS, check_least, one_line_ends, say
from experiments import cli

PROG = "python -m benchmarks.gpu_program"
_WORDS = ("auto", "vmap", "scan")
RESULT, TABLE, FIGURE = "result.json", "table.md", "roofline.png"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compile programs for a described NVIDIA H200 and count what they do; nothing is run.

    The results replace those of the same cases in the folder; results of other cases stay there.
    """

    cases: tuple[str, ...] = ()
    """cases, or groups of them: first-order, second-order, evaluation, resnet12, glance, cmaml;
    table-s2: the parts of a whole run; default: all"""
    task_loop: Literal["auto", "vmap", "scan"] | int = "auto"
    """few-shot learning: adapt to the tasks of a batch in parallel (vmap), in turn (scan), or to
    this many in parallel, one such group after the other; auto: as on a GPU, vmap"""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """precision of matrix products and convolutions in the compiled programs"""
    kernels: int = 0
    """print this many kernels of each case, those with the most time; at most 12"""
    out: Path = RESULTS / "h200-compiled"
    """folder of the results"""


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, compile, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    check_least(flags, {"kernels": 0, **({} if flags.task_loop in _WORDS else {"task_loop": 1})})
    import jax

    jax.config.update("jax_platforms", "cpu")
    chosen, whole_run = _chosen(flags.cases)
    from benchmarks.gpu_program import target

    if reason := target.missing():
        cli.fail(reason)
    with one_line_ends():
        _run(flags, chosen, whole_run)


def _chosen(names: Sequence[str]) -> tuple[list[Any], bool]:
    """The cases of these names, and whether the whole run is among them; all without names."""
    from benchmarks.gpu_program import cases, whole_run

    if not names:
        return list(cases.all_cases().values()), True
    try:
        chosen = cases.choose([name for name in names if name != whole_run.NAME])
    except ValueError as error:
        cli.fail(f"{error}; also {whole_run.NAME}")
    return chosen, whole_run.NAME in names


def _run(flags: Flags, chosen: Iterable[Any], with_run: bool) -> None:
    from benchmarks import report
    from benchmarks.gpu_program import tables, whole_run
    from benchmarks.gpu_program.measure import about, label, measure

    report.prepare(flags.out)
    results = _stored(flags.out / RESULT)
    for case in chosen:
        say(f"{case.name}: compiling")
        entry = measure(case, flags.task_loop, flags.precision)
        if flags.kernels:
            print("\n".join(tables.kernel_lines(entry, flags.kernels)))
        results = _add(flags.out, "cases", label(entry), entry)
    if with_run:
        say("a whole run of Table S2: compiling")
        run = whole_run.measure(flags.precision) | about()
        results = _add(flags.out, "whole_runs", flags.precision, run)
    report.show(tables.sections(results), tables.LEGEND)
    print(f"results: {flags.out}")


def _add(out: Path, kind: str, key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Add an entry to the files; returns all results."""
    results = _stored(out / RESULT)  # read again: another command may have added some
    results[kind][key] = entry
    _publish(out, results)
    return results


def _stored(path: Path) -> dict[str, Any]:
    """The results in a file; none if there is no file."""
    if not path.exists():
        return {"cases": {}, "whole_runs": {}}
    try:
        results = json.loads(path.read_text())
        return {name: dict(results[name]) for name in ("cases", "whole_runs")}
    except (ValueError, LookupError, TypeError) as error:
        cli.fail(f"{path} has no results of this command: {error}", status=1)


def _publish(out: Path, results: dict[str, Any]) -> None:
    """Write the numbers, the tables and the figure, the cases in the order of the tables."""
    from benchmarks import figures, report
    from benchmarks.gpu_program import cases, figure, tables

    order = list(cases.all_cases())
    entries = results["cases"]
    places = {key: order.index(e["name"]) for key, e in entries.items() if e["name"] in order}
    results["cases"] = {key: entries[key] for key in sorted(places, key=lambda key: places[key])}
    files: dict[str, str | bytes] = {
        RESULT: report.to_json(results),
        TABLE: tables.markdown(results),
    }
    if entries:
        files[FIGURE] = figures.png(figure.draw(list(results["cases"].values())))
    report.publish(out, files)
