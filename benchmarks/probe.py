"""Compilation and memory of one form, measured in a fresh process.

python -m benchmarks.probe --form jaxsparse --case '{"tasks": 2, "width": 32}'
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine
from benchmarks.families import FAMILIES, Family
from experiments import cli

PROG = "python -m benchmarks.probe"
ROOT = Path(__file__).resolve().parent.parent


class ProbeError(Exception):
    """The form failed in the fresh process; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Take a few steps of one form and print their time and memory as JSON."""

    form: str = "jaxsparse"
    """name of the form"""
    case: str = "{}"
    """fields of the case, as JSON; other fields have their defaults"""
    family: str = "sparse-maml"
    """family of the form"""
    device: Literal["cpu", "gpu"] = "cpu"
    """device"""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """precision of matrix products and convolutions"""
    steps: int = 3
    """number of steps; the first one compiles"""


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, measure, print."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    try:
        print(json.dumps(measure(*_checked(flags))))
    except ImportError as error:
        cli.fail(f"{flags.form} cannot run here: {error}")
    except Exception as error:
        cli.fail(f"{flags.form}: {str(error) or type(error).__name__}", status=1)


def _checked(flags: Flags) -> tuple[Family, str, Any, str, str, int]:
    if flags.family not in FAMILIES:
        cli.fail(f"--family {flags.family}: want one of {', '.join(FAMILIES)}")
    family = FAMILIES[flags.family]
    if flags.form not in family.forms:
        cli.fail(f"--form {flags.form}: want one of {', '.join(family.forms)}")
    if flags.steps < 2:
        cli.fail(f"--steps must be at least 2, got {flags.steps}")
    try:
        case = family.case_of(json.loads(flags.case))
    except (TypeError, ValueError) as error:
        cli.fail(f"--case {flags.case}: {error}")
    return family, flags.form, case, flags.device, flags.precision, flags.steps


def measure(
    family: Family, form: str, case: Any, device: str, precision: str, steps: int
) -> dict[str, Any]:
    """Seconds of every step, memory before them and at the peak, memory of the program if known."""
    stepping = family.make(form, case, case.draw(), device, precision)
    base = machine.memory(device)["now"]
    seconds = []
    with _cache_misses() as misses:
        for _ in range(steps):
            start = time.perf_counter()
            stepping.step()
            seconds.append(time.perf_counter() - start)
    out = {
        "seconds": seconds,
        "compile_s": max(0.0, seconds[0] - statistics.median(seconds[1:])),
        "cache_misses": len(misses),
        "base_bytes": base,
        "peak_bytes": machine.memory(device)["peak"],
    }
    if hasattr(stepping, "temp_bytes"):  # only compiled programs have it
        out["temp_bytes"] = stepping.temp_bytes()
    return out


@contextlib.contextmanager
def _cache_misses() -> Iterator[list[str]]:
    """Collect an event for each program that was not in JAX's compilation cache."""
    misses: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_misses":
            misses.append(event)

    if "jax" not in sys.modules:  # a form in PyTorch: do not add JAX's memory
        yield misses
        return
    import jax

    jax.monitoring.register_event_listener(listen)
    try:
        yield misses
    finally:
        jax.monitoring.unregister_event_listener(listen)


def in_new_process(
    family: Family,
    form: str,
    case: Any,
    device: str = "cpu",
    precision: str = "float32",
    *,
    cache: Path,
    steps: int = 3,
) -> dict[str, Any]:
    """`measure` in a fresh process that keeps compiled programs under `cache`.

    If it fails, the `ProbeError` has the last line of its stderr.
    """
    fields = json.dumps(dataclasses.asdict(case))
    command = [
        *(sys.executable, "-m", "benchmarks.probe", "--family", family.name, "--form", form),
        *("--case", fields, "--device", device, "--precision", precision, "--steps", str(steps)),
    ]
    environment = {
        **os.environ,
        **{name.upper(): str(value) for name, value in _cache_settings(cache).items()},
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch"),
        # Preallocated memory would hide what is needed.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ProbeError(lines[-1].removeprefix("error: ")[:300])
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def keeping_programs(cache: Path) -> Iterator[None]:
    """Make this process keep compiled programs where `in_new_process` finds them."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = _cache_settings(cache)
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # JAX opens its cache only once, at the first compilation
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _cache_settings(cache: Path) -> dict[str, Any]:
    """JAX settings; in capitals they are environment variables."""
    return {
        "jax_compilation_cache_dir": str(cache / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


if __name__ == "__main__":
    main()
