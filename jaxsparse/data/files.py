"""Files that may be anything, opened with care; and what is moved to its place whole."""

import os
import stat
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from jaxsparse.user_cache import remove

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's categories of what would break a line


def not_a_file(mode: int) -> str | None:
    """What `st_mode` says is there instead of a file; None for a file."""
    if stat.S_ISREG(mode):
        return None
    return f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file"


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading; OSError for pipes, devices and the like, which could wait for ever.

    Example:
        >>> with open_file("images.npy") as file:
        ...     start = file.read(6)
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    # Looked at before it is opened, too: opening alone may change a device.
    if reason := not_a_file(Path(path).stat().st_mode):
        raise OSError(0, reason, path)
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if reason := not_a_file(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, reason, path)
    return descriptor


def one_line(text: str | os.PathLike[str]) -> str:
    """A name as it is where it can be printed on one line, else with escapes, in quotes."""
    text = os.fspath(text)
    return repr(text) if has_control_characters(text) else text


def has_control_characters(text: str) -> bool:
    """Whether a name holds line breaks, other control characters, or bytes that are no UTF-8."""
    # Most names are printable, and few of the others have these: joiners of some scripts are none.
    return not text.isprintable() and any(unicodedata.category(c) in _CONTROL for c in text)


def put(new: Path, path: Path) -> None:
    """Move a new file or folder to `path`, once all of it is on the disk.

    Where another kind of thing is in the way it is removed: `path` is a place of the cache.
    """
    for part in [new, *new.iterdir()] if new.is_dir() else [new]:
        to_disk(part)
    if new.is_dir() or path.is_dir():
        remove(path)
    new.replace(path)
    with suppress(OSError):  # some file systems cannot; what was moved is whole either way
        to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
