"""What the benchmarks' commands share: flags, one-line errors, the run of a comparison."""

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
    """Tell on stderr what is being done."""
    print(f"  {line}", file=sys.stderr, flush=True)


def check_least(flags: Any, least: Mapping[str, int]) -> None:
    """Refuse flags below what they must at least be; None is no value."""
    for name, bound in least.items():
        value = getattr(flags, name)
        if value is not None and value < bound:
            cli.fail(f"--{name.replace('_', '-')} must be at least {bound}, got {value}")


def want_torch() -> None:
    """Refuse to go on without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        cli.fail("PyTorch is not installed; it comes with pip install -e '.[benchmark]'")


@contextlib.contextmanager
def one_line_ends() -> Iterator[None]:
    """As `cli.one_line_errors`, with numbers that differ and forms that fail."""
    try:
        with cli.one_line_errors():
            yield
    except Mismatch as error:
        cli.fail(str(error), status=1)
    except ProbeError as error:
        cli.fail(f"a process that measures one form failed: {error}", status=1)


def header(
    about: dict[str, Any],
    repeats: int,
    with_torch: bool = True,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, Any]:
    """What every file of results begins with; the rate of matrix products is measured here."""
    say("matrix products")
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
    """Measure on this machine's processor, print the table, write it and the numbers.

    Args:
      flags: the command's, with `repeats` and `out`.
      files: names of the numbers' and of the table's file.
      measure: the numbers, to be added to `header`.
      markdown: the table of all of them.
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
