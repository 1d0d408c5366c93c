"""The exceptions of a run. Each message is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxsparse.errors import DataError


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line naming the field."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


class Diverged(Exception):
    """The loss or a trained parameter is no longer finite; the message names the step."""


class RunError(Exception):
    """A run folder that cannot be used as asked; the message is one line."""


class WriteError(RunError):
    """A file could not be written, for example on a full disk; earlier files are unchanged."""


@contextmanager
def writing(path: Path, error_type: type[RunError] = WriteError) -> Iterator[None]:
    """Turn any error while writing to `path` into an `error_type` with a one-line message."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        raise error_type(f"cannot write to {path}: {one_line(error)}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors while reading `path` into a RunError with a one-line message."""
    try:
        yield
    except RunError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {one_line(error)}") from error


@contextmanager
def trusting(path: Path) -> Iterator[None]:
    """Turn errors caused by wrong contents of `path` into a RunError with a one-line message.

    Only for code that reads and shows a run: there these errors come from wrong contents.
    """
    try:
        yield
    except (ConfigError, DataError, RunError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise RunError(f"{path} has contents that no run writes: {what}") from error


def one_line(error: BaseException) -> str:
    """The message of `error` on one line; for an OSError only the system's text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__
