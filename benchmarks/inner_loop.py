"""One meta-step of sparse-MAML against PyTorch doing the same arithmetic, in the same run.

python -m benchmarks.inner_loop
python -m benchmarks.inner_loop --tasks 4 --size 28 --width 32 --forms jaxsparse channels_last
python -m benchmarks.inner_loop --curves
"""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.cases import CPU_CASES, GPU_CASES, Case
from benchmarks.command import Mismatch, want_torch
from benchmarks.families import GLANCE, SPARSE_MAML, Family
from benchmarks.glance import CASES as GLANCE_CASES
from experiments import cli

PROG = "python -m benchmarks.inner_loop"
RESULTS = Path(__file__).resolve().parent / "results"
WIDTH = 100  # of the tables where no terminal says what fits

Form = Literal["jaxsparse", "one device", "loop", "channels_last", "vmap", "sums", "compile"]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time one meta-step of sparse-MAML and of PyTorch doing the same arithmetic.

    Without any of the case's flags (tasks to query-shots), the usual cases are timed.
    """

    tasks: int | None = None
    """tasks in the meta-step"""
    shots: int | None = None
    """support images per class"""
    size: int | None = None
    """height and width of the images"""
    channels: int | None = None
    """of the images; 3 from 84x84 on, else 1"""
    width: int | None = None
    """channels of Conv4's layers"""
    inner_steps: int | None = None
    """K"""
    ways: int | None = None
    """classes per task"""
    query_shots: int | None = None
    """query images per class"""
    forms: tuple[Form, ...] = Form.__args__  # type: ignore[attr-defined]
    """contestants; a family leaves out those it does not have"""
    family: Literal["sparse-maml", "glance"] | None = None
    """meta-steps of few-shot learning, or glances of La-MAML; default: both on the CPU"""
    device: Literal["cpu", "gpu"] | None = None
    """where to run; default: where JAX does"""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """of matrix products and convolutions"""
    repeats: int = 9
    """timed rounds"""
    probe: bool = True
    """measure compilation and memory, in fresh processes"""
    curves: bool = False
    """time and memory along K, tasks, width, seeds and image size instead"""
    out: Path | None = None
    """folder of the results; default: one per machine under benchmarks/results"""


def main(args: Sequence[str] | None = None) -> None:
    """Read the flags, measure, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    try:
        cases = _checked(flags)
        _run(flags, cases)
    except KeyboardInterrupt:
        cli.fail("stopped", status=130)


def _checked(flags: Flags) -> tuple[Case, ...]:
    """The cases asked for (none: the usual ones), or one line on what is wrong with the flags."""
    if flags.repeats < 1:
        cli.fail(f"--repeats must be at least 1, got {flags.repeats}")
    if not flags.forms:
        cli.fail("--forms: want at least one")
    fields = {
        name: getattr(flags, name)
        for name in ("tasks", "shots", "width", "inner_steps", "ways", "query_shots")
        if getattr(flags, name) is not None
    }
    if flags.size is not None or flags.channels is not None:
        size = Case().image[0] if flags.size is None else flags.size
        channels = (3 if size >= 84 else 1) if flags.channels is None else flags.channels
        fields["image"] = (size, size, channels)
    if flags.curves and fields:
        cli.fail("--curves has its own cases: leave out the flags of a single one")
    if flags.family == "glance" and (fields or flags.curves):
        cli.fail("--family glance has its own cases and no curves: leave out their flags")
    try:
        cases = (Case(**fields),) if fields else ()
    except ValueError as error:
        cli.fail(str(error))
    if set(flags.forms) & set(SPARSE_MAML.peers):
        want_torch()
    return cases


def _run(flags: Flags, cases: tuple[Case, ...]) -> None:
    from benchmarks.measure import Setting
    from benchmarks.probe import ProbeError
    from benchmarks.report import prepare

    with cli.one_line_errors():
        device = _choose_device(flags.device)
        about = machine.describe(device)
        out = flags.out or RESULTS / machine.slug(about)
        prepare(out)
        _check_pytorch(flags.forms, device)
        setting = Setting(device, flags.precision, flags.repeats, flags.probe)
        try:
            if flags.curves:
                run_curves(flags.forms, setting, about, out)
            else:
                usual = GPU_CASES if device == "gpu" else CPU_CASES
                if flags.family != "glance":
                    run_cases(SPARSE_MAML, cases or usual, flags.forms, setting, about, out)
                if flags.family == "glance" or not (flags.family or cases or device == "gpu"):
                    run_cases(GLANCE, GLANCE_CASES, flags.forms, setting, about, out, "glance")
        except Mismatch as error:
            cli.fail(str(error), status=1)
        except ProbeError as error:
            cli.fail(f"a process that measures one form failed: {error}", status=1)


def _choose_device(wanted: str | None) -> str:
    """ "cpu" or "gpu", and JAX told to use it; has to come before JAX's first array."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some, too
    import jax

    if wanted == "cpu":
        jax.config.update("jax_platforms", "cpu")
    cli.use_cores(machine.cores())
    found = "cpu" if jax.default_backend() == "cpu" else "gpu"
    if wanted == "gpu" and found != "gpu":
        cli.fail("--device gpu: JAX sees no GPU; pip install -e '.[cuda]' where there is one")
    return found


def _check_pytorch(forms: Sequence[str], device: str) -> None:
    if not set(forms) & set(SPARSE_MAML.peers):
        return
    from benchmarks import peers

    try:
        peers.torch_device(device)
    except ValueError as error:
        cli.fail(str(error))


def run_cases(
    family: Family,
    cases: Sequence[Any],
    forms: Sequence[str],
    setting: Any,
    about: dict[str, Any],
    out: Path,
    name: str = "inner_loop",
) -> None:
    """Compare the contestants on every case; print the tables, write them and a figure to `out`.

    Args:
      family: what is compared.
      cases: cases of the family.
      forms: its contestants.
      setting: a `measure.Setting`.
      about: what `machine.describe` returned.
      out: folder of the results.
      name: of the figure, and in front of the other files' names where it is not "inner_loop".
    """
    from benchmarks import figures, measure, report

    forms = [form for form in forms if form in family.forms]
    results = _header(setting, about, forms)
    results["cases"] = [measure.compare(family, case, forms, setting, _say) for case in cases]
    prefix = "" if name == "inner_loop" else f"{name}-"
    report.show(_console(), results)
    report.publish(out, f"{prefix}result.json", report.to_json(results))
    report.publish(out, f"{prefix}table.md", report.markdown(results))
    report.publish(out, f"{name}.png", figures.png(figures.draw_cases(results)))
    print(f"results: {out}")


def run_curves(forms: Sequence[str], setting: Any, about: dict[str, Any], out: Path) -> None:
    """Measure every curve; print the tables and verdicts, write them and a figure to `out`."""
    from benchmarks import curves, figures, probe, report

    results = _header(setting, about, forms)
    results["curves"] = []
    with (
        tempfile.TemporaryDirectory(prefix="jaxsparse-benchmark-") as folder,
        probe.keeping_programs(Path(folder)),
    ):
        for curve in curves.curves():
            shown = [f for f in curve.forms if f != curves.CONTEXT or f in forms]
            results["curves"].append(curves.trace(curve, shown, setting, Path(folder), _say))
    results["verdicts"] = curves.verdicts(results["curves"])
    console = _console()
    for curve in results["curves"]:
        table = Table(*curves.columns(curve), title=curve["name"], title_justify="left")
        for row in curves.table_rows(curve):
            table.add_row(*row)
        console.print(table)
    for verdict in results["verdicts"]:
        console.print(curves.verdict_line(verdict))
    console.print(report.machine_line(results), highlight=False)
    report.publish(out, "curves.json", report.to_json(results))
    report.publish(out, "curves.md", curves.markdown(results))
    report.publish(out, "curves.png", figures.png(figures.draw_curves(results)))
    print(f"results: {out}")


def _header(setting: Any, about: dict[str, Any], forms: Sequence[str]) -> dict[str, Any]:
    with_torch = bool(set(forms) & set(SPARSE_MAML.peers))
    _say("matrix products")
    return {
        "machine": about,
        "precision": setting.precision,
        "repeats": setting.repeats,
        "matmul_flops_per_s": machine.matmul_rate(setting.device, setting.precision, with_torch),
    }


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
