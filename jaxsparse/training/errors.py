"""What can go wrong with a run, said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxsparse.errors import DataError


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line naming the field."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


class Diverged(Exception):
    """The loss is no longer finite; the message names the step."""


class RunError(Exception):
    """A run folder that cannot be used as asked; the message is one line."""


class WriteError(RunError):
    """Something could not be written (a full disk, say); what was there is left as it was."""


@contextmanager
def writing(path: Path, error_type: type[RunError] = WriteError) -> Iterator[None]:
    """Turn what the file system (or orbax on its behalf) refuses at `path` into one line."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        raise error_type(f"cannot write to {path}: {one_line(error)}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what keeps `path` from being read, or from being looked at, into one line."""
    try:
        yield
    except RunError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {one_line(error)}") from error


@contextmanager
def trusting(path: Path) -> Iterator[None]:
    """Turn what fails because `path` holds other entries than a run writes into one line.

    For what only reads and shows: there, wrong contents are what such errors come from.
    """
    try:
        yield
    except (ConfigError, DataError, RunError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise RunError(f"{path} holds what no run writes: {what}") from error


def one_line(error: BaseException) -> str:
    """The message of `error` on one line, the system's own words where it has them."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__
