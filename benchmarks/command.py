"""What the benchmarks' commands have in common: bad flags, no PyTorch, numbers that differ."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from experiments import cli


class Mismatch(Exception):
    """Two contestants do not do the same arithmetic; the message is one line."""


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
    """As `cli.one_line_errors`, with numbers that differ and Ctrl-C."""
    try:
        with cli.one_line_errors():
            yield
    except Mismatch as error:
        cli.fail(str(error), status=1)
    except KeyboardInterrupt:
        cli.fail("stopped", status=130)
