"""Small files that are whole: written beside their place, then put there in one move."""

import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxsparse.data.files import to_disk


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path`, to be written by the caller, that takes its place at the end.

    A kill, an error or a full disk at any moment leaves what was at `path` before. Several
    processes may replace the same file at once; the last one's stays. A link is followed.

    Args:
      path: the file to be made or replaced; its folder is there.

    Returns:
      A context with the path to write to, which has the ending of `path`. What an error leaves
      there is removed.

    Raises:
      OSError: it cannot be written, or `path` is something other than a file.

    Example:
      >>> with replacing(Path("figure.png")) as partial:
      ...     figure.savefig(partial)
    """
    place = Path(os.path.realpath(path))
    mode = _mode(place)
    partial = place.with_name(partial_name(place.suffix[:32]))
    try:
        yield partial
        if mode is not None:
            partial.chmod(mode)
        to_disk(partial)
        partial.replace(place)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    with suppress(OSError):  # some file systems cannot; the file itself is whole either way
        to_disk(place.parent)


def partial_name(ending: str) -> str:
    """A new name for a file that is still being written."""
    return f".{uuid.uuid4().hex[:12]}.partial{ending}"


def is_partial(name: str, ending: str = "") -> bool:
    """Whether a file of this name, and with this ending, was left by a `replacing` cut off."""
    return re.fullmatch(rf"\.[0-9a-f]{{12}}\.partial{re.escape(ending)}", name) is not None


def replace_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _mode(place: Path) -> int | None:
    """The permissions of the file that is there, None without any."""
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):  # a device, say, which the move would put an end to
        raise OSError(f"{place} is not a file")
    return stat.S_IMODE(mode)
