"""One meta-step of sparse-MAML in jaxsparse and in PyTorch, in the same run.

python -m benchmarks.inner_loop
python -m benchmarks.inner_loop --tasks 4 --size 28 --width 32 --forms jaxsparse channels_last
python -m benchmarks.inner_loop --family resnet12
python -m benchmarks.inner_loop --curves
"""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine
from benchmarks.cases_continual import CASES as GLANCE_CASES
from benchmarks.cases_fewshot import CPU_CASES, GPU_CASES, FewShotCase
from benchmarks.cases_resnet12 import CASES as RESNET_CASES
from benchmarks.command import RESULTS, check_least, header, one_line_ends, say, want_torch
from benchmarks.families import GLANCE, RESNET12, SPARSE_MAML, Family
from benchmarks.harness import Setting, compare
from experiments import cli

PROG = "python -m benchmarks.inner_loop"

FormName = Literal["jaxsparse", "one device", "loop", "channels_last", "vmap", "sums", "compile"]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time one meta-step of sparse-MAML in jaxsparse and in PyTorch, with the same arithmetic.

    Without any flag from --tasks to --query-shots, the standard cases are timed.
    """

    tasks: int | None = None
    """tasks in the meta-step"""
    shots: int | None = None
    """support images per class"""
    size: int | None = None
    """height and width of the images"""
    channels: int | None = None
    """channels of the images; default: 3 from 84x84 on, else 1"""
    width: int | None = None
    """channels of Conv4's layers"""
    inner_steps: int | None = None
    """K"""
    ways: int | None = None
    """classes per task"""
    query_shots: int | None = None
    """query images per class"""
    forms: tuple[FormName, ...] = FormName.__args__  # type: ignore[attr-defined]
    """implementations to compare; those that a family does not have are skipped"""
    family: Literal["sparse-maml", "glance", "resnet12"] | None = None
    """meta-steps of few-shot learning, glances of La-MAML, or meta-steps with ResNet-12; default:
    the first two on the CPU"""
    device: Literal["cpu", "gpu"] | None = None
    """device; default: JAX's"""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """precision of matrix products and convolutions"""
    repeats: int = 9
    """timed rounds"""
    probe: bool = True
    """measure compilation and memory, in fresh processes"""
    curves: bool = False
    """instead measure time and memory against K, tasks, width, seeds and image size"""
    out: Path | None = None
    """folder of the results; default: the machine's folder under benchmarks/results"""

    @property
    def with_torch(self) -> bool:
        """Whether a form in PyTorch is requested."""
        return bool(set(self.forms) & {*SPARSE_MAML.peers, *GLANCE.peers})


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, measure, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    cases = _checked(flags)
    with one_line_ends():
        _run(flags, cases)


def _checked(flags: Flags) -> tuple[FewShotCase, ...]:
    """Check the flags; returns the requested case, or nothing for the standard cases."""
    check_least(flags, {"repeats": 1})
    if not flags.forms:
        cli.fail("--forms must have at least one value, got none")
    fields = {
        name: getattr(flags, name)
        for name in ("tasks", "shots", "width", "inner_steps", "ways", "query_shots")
        if getattr(flags, name) is not None
    }
    if flags.size is not None or flags.channels is not None:
        size = FewShotCase().image[0] if flags.size is None else flags.size
        channels = (3 if size >= 84 else 1) if flags.channels is None else flags.channels
        fields["image"] = (size, size, channels)
    if flags.curves and fields:
        cli.fail("--curves has its own cases: leave out the flags of a single case")
    if flags.family in ("glance", "resnet12") and (fields or flags.curves):
        cli.fail(f"--family {flags.family} has its own cases and no curves: leave out these flags")
    try:
        cases = (FewShotCase(**fields),) if fields else ()
    except ValueError as error:
        cli.fail(str(error))
    if flags.with_torch:
        want_torch()
    return cases


def _run(flags: Flags, cases: tuple[FewShotCase, ...]) -> None:
    from benchmarks import report

    device = _choose_device(flags.device)
    about = machine.describe(device)
    out = flags.out or RESULTS / machine.slug(about)
    report.prepare(out)
    if flags.with_torch:
        _check_pytorch(device)
    setting = Setting(device, flags.precision, flags.repeats, flags.probe)
    results = header(about, flags.repeats, flags.with_torch, device, flags.precision)
    if flags.curves:
        run_curves(flags.forms, setting, results, out)
        return
    if flags.family == "resnet12":
        run_cases(RESNET12, RESNET_CASES, flags.forms, setting, results, out, "resnet12")
        return
    if flags.family != "glance":
        standard = GPU_CASES if device == "gpu" else CPU_CASES
        run_cases(SPARSE_MAML, cases or standard, flags.forms, setting, results, out)
    if flags.family == "glance" or not (flags.family or cases or device == "gpu"):
        run_cases(GLANCE, GLANCE_CASES, flags.forms, setting, results, out, "glance")


def _choose_device(wanted: str | None) -> str:
    """Choose "cpu" or "gpu" and make JAX use it; call it before JAX's first array."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory to PyTorch
    import jax

    if wanted == "cpu":
        jax.config.update("jax_platforms", "cpu")
    cli.use_all_cores()
    found = "cpu" if jax.default_backend() == "cpu" else "gpu"
    if wanted == "gpu" and found != "gpu":
        cli.fail("--device gpu: JAX sees no GPU; for a GPU it needs pip install -e '.[cuda]'")
    return found


def _check_pytorch(device: str) -> None:
    from benchmarks.torch_base import torch_device

    try:
        torch_device(device)
    except ValueError as error:
        cli.fail(str(error))


def run_cases(
    family: Family,
    cases: Sequence[Any],
    forms: Sequence[str],
    setting: Setting,
    results: dict[str, Any],
    out: Path,
    name: str = "inner_loop",
) -> None:
    """Compare the forms on every case; print the tables, write them and a figure to `out`.

    `results` is from `command.header`. `name` is the name of the figure; if it is not "inner_loop",
    it is also a prefix of the other files' names.
    """
    from benchmarks import figures, report

    forms = [form for form in forms if form in family.forms]
    results = results | {"cases": [compare(family, case, forms, setting, say) for case in cases]}
    sections = report.case_sections(results)
    report.show(sections, [*report.LEGEND, report.machine_line(results)])
    table = report.markdown("One meta-step of each form", results, sections, after=report.LEGEND)
    prefix = "" if name == "inner_loop" else f"{name}-"
    files: dict[str, str | bytes] = {
        f"{prefix}result.json": report.to_json(results),
        f"{prefix}table.md": table,
        f"{name}.png": figures.png(figures.draw_cases(results)),
    }
    report.publish(out, files)
    print(f"results: {out}")


def run_curves(forms: Sequence[str], setting: Setting, results: dict[str, Any], out: Path) -> None:
    """Measure every curve; print the tables and verdicts, write them and a figure to `out`."""
    from benchmarks import curves, figures, probe, report

    with (
        tempfile.TemporaryDirectory(prefix="jaxsparse-benchmark-") as folder,
        probe.keeping_programs(Path(folder)),
    ):
        traced = [
            curves.trace(curve, forms, setting, Path(folder), say) for curve in curves.curves()
        ]
    results = results | {"curves": traced, "verdicts": curves.verdicts(traced)}
    lines = [curves.verdict_line(verdict) for verdict in results["verdicts"]]
    sections = [curves.section(curve) for curve in traced]
    report.show(sections, [*lines, report.machine_line(results)])
    title = "The meta-step against one setting at a time"
    files: dict[str, str | bytes] = {
        "curves.json": report.to_json(results),
        "curves.md": report.markdown(title, results, sections, before=lines),
        "curves.png": figures.png(figures.draw_curves(results)),
    }
    report.publish(out, files)
    print(f"results: {out}")


if __name__ == "__main__":
    main()
