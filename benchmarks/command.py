"""Shared by the benchmark commands: flags, one-line errors, running a comparison."""

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.harness import Mismatch
from benchmarks.probe import ProbeError
from experiments import cli

RESULTS = Path(__file__).resolve().parent / "results"


def say(line: str) -> None:
    """Print progress on stderr."""
    print(f"  {line}", file=sys.stderr, flush=True)


def check_least(flags: Any, least: Mapping[str, int]) -> None:
    """Refuse flags below their minimum; None is allowed."""
    for name, bound in least.items():
        value = getattr(flags, name)
        if value is not None and value < bound:
            cli.fail(f"--{name.replace('_', '-')} must be at least {bound}, got {value}")


def want_torch() -> None:
    """Fail if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        cli.fail("PyTorch is not installed; install it with pip install -e '.[benchmark]'")


@contextlib.contextmanager
def one_line_ends() -> Iterator[None]:
    """Like `cli.one_line_errors`, also for forms that disagree or fail."""
    try:
        with cli.one_line_errors():
            yield
    except Mismatch as error:
        cli.fail(str(error), status=1)
    except ProbeError as error:
        cli.fail(f"measuring one form in a fresh process failed: {error}", status=1)


def header(
    about: dict[str, Any],
    repeats: int,
    with_torch: bool = True,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, Any]:
    """The first entries of every results file; measures the rate of matrix products."""
    say("measuring the rate of matrix products")
    return {
        "machine": about,
        "precision": precision,
        "repeats": repeats,
        "matmul_flops_per_s": machine.matmul_rate(device, precision, with_torch),
    }


def compare_on_cpu(
    flags: Any,
    files: tuple[str, str],
    measure: Callable[[], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
) -> None:
    """Measure on the CPU, print the table, write the numbers and the table.

    Args:
      flags: the flags of the command, with `repeats` and `out`.
      files: the names of the JSON file and of the Markdown file.
      measure: returns the numbers that are added to those of `header`.
      markdown: makes the table from all numbers.
    """
    import jax

    from benchmarks import report

    jax.config.update("jax_platforms", "cpu")
    about = machine.describe("cpu")
    out = flags.out or RESULTS / machine.slug(about)
    report.prepare(out)
    results = {
        **header(about, flags.repeats),
        "flags": {**dataclasses.asdict(flags), "out": None},
        **measure(),
    }
    table = markdown(results)
    print(table)
    report.publish(out, {files[0]: report.to_json(results), files[1]: table})
    print(f"results: {out}")
