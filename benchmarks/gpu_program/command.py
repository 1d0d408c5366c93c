"""The command: flags, results and files.

python -m benchmarks.gpu_program
python -m benchmarks.gpu_program --cases conv4-84-5-shot-4-tasks --kernels 12
python -m benchmarks.gpu_program --cases glance cmaml resnet12 --precision tensorfloat32
python -m benchmarks.gpu_program --cases table-s2
python -m benchmarks.gpu_program --measure --cases glance evaluation
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
RESULT, TABLE, FIGURE = "result.json", "table.md", "roofline.png"
MEASURED, MEASURED_TABLE = "measured.json", "measured.md"
_WORDS = ("auto", "vmap", "scan")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compile programs for a described NVIDIA H200 and count what they do; nothing is run.

    With --measure, run them on this machine's GPU instead. The results replace those of the same
    cases in the folder; results of other cases stay there.
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
    measure: bool = False
    """time the cases on JAX's default device, beside the bounds of the programs that it runs"""
    repeats: int = 5
    """timed calls of each case, with --measure"""
    platform: Literal["gpu", "cpu"] = "gpu"
    """with --measure: cpu times the cases without a GPU, to try the command"""
    out: Path | None = None
    """folder of the results; default: h200-compiled under benchmarks/results, with --measure the
    device's folder there"""


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, compile, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    check_least(flags, {"kernels": 0, "repeats": 1})
    if flags.task_loop not in _WORDS:
        check_least(flags, {"task_loop": 1})
    import jax

    if not flags.measure or flags.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    chosen, whole_run = _chosen(flags.cases)
    if flags.measure:
        if whole_run and flags.cases:
            cli.fail("--measure cannot time a whole run: leave out --cases table-s2")
        _check_device(flags.platform)
        with one_line_ends():
            _time(flags, chosen)
        return
    from benchmarks.gpu_program import target

    if reason := target.missing():
        cli.fail(reason)
    with one_line_ends():
        _run(flags, chosen, whole_run)


def _check_device(platform: str) -> None:
    import jax

    cli.start_backend()
    if platform == "gpu" and jax.default_backend() != "gpu":
        cli.fail("--measure: JAX sees no GPU; for a GPU it needs pip install -e '.[cuda]'")


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


def _time(flags: Flags, chosen: Iterable[Any]) -> None:
    """Time the cases; each is written as soon as it is measured."""
    import jax

    from benchmarks import machine, report
    from benchmarks.gpu_program import timing
    from benchmarks.gpu_program.measure import label

    cli.use_compilation_cache()
    kind = "gpu" if jax.default_backend() == "gpu" else "cpu"
    out = flags.out or RESULTS / machine.slug(machine.describe(kind))
    report.prepare(out)
    entries = _stored(out / MEASURED, ("cases",))["cases"]
    for case in chosen:
        if not case.timed:
            say(f"{case.name}: left out, as its random arguments take other branches")
            continue
        say(f"{case.name}: compiling and timing")
        entry = timing.time_case(case, flags.task_loop, flags.precision, flags.repeats)
        entries[label(entry)] = entry
        files = {MEASURED: report.to_json({"cases": entries})}
        report.publish(out, {**files, MEASURED_TABLE: timing.markdown(entries)})
    report.show(timing.sections(entries.values()), timing.LEGEND)
    print(f"results: {out}")


def _run(flags: Flags, chosen: Iterable[Any], with_run: bool) -> None:
    from benchmarks import report
    from benchmarks.gpu_program import tables, whole_run
    from benchmarks.gpu_program.measure import about, label, measure

    out = flags.out or RESULTS / "h200-compiled"
    report.prepare(out)
    results = _stored(out / RESULT)
    for case in chosen:
        say(f"{case.name}: compiling")
        entry = measure(case, flags.task_loop, flags.precision)
        if flags.kernels:
            print("\n".join(tables.kernel_lines(entry, flags.kernels)))
        results = _add(out, "cases", label(entry), entry)
    if with_run:
        say("a whole run of Table S2: compiling")
        run = whole_run.measure(flags.precision) | about()
        results = _add(out, "whole_runs", flags.precision, run)
    report.show(tables.sections(results), tables.LEGEND)
    print(f"results: {out}")


def _add(out: Path, kind: str, key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Add an entry to the files; returns all results."""
    results = _stored(out / RESULT)  # read again: another command may have added some
    results[kind][key] = entry
    _publish(out, results)
    return results


def _stored(path: Path, kinds: Sequence[str] = ("cases", "whole_runs")) -> dict[str, Any]:
    """The results in a file; none if there is no file."""
    if not path.exists():
        return {kind: {} for kind in kinds}
    try:
        results = json.loads(path.read_text())
        return {kind: dict(results[kind]) for kind in kinds}
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
