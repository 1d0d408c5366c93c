"""Open only regular files, print their names on one line, and write files atomically."""

import os
import stat
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from jaxsparse.user_cache import remove

Version = tuple[str, int, int]
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # Unicode categories of characters that would break a line


def not_a_file(mode: int) -> str | None:
    """What kind of thing has this `st_mode`, if it is not a regular file; None for a file."""
    if stat.S_ISREG(mode):
        return None
    return f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file"


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; OSError for a pipe, device etc., which could block."""
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    # Checked before opening as well, because opening a device may change it.
    if reason := not_a_file(Path(path).stat().st_mode):
        raise OSError(0, reason, path)
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if reason := not_a_file(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, reason, path)
    return descriptor


def one_line(text: str | os.PathLike[str]) -> str:
    """A file name for a message: unchanged if it prints on one line, else quoted with escapes."""
    text = os.fspath(text)
    return repr(text) if has_control_characters(text) else text


def has_control_characters(text: str) -> bool:
    """Whether a name has line breaks, other control characters, or bytes that are not UTF-8."""
    # Not only `isprintable`: some scripts need characters (joiners) that are not printable.
    return not text.isprintable() and any(unicodedata.category(c) in _CONTROL for c in text)


def version(file: Path) -> Version:
    """The real path of a file, its size in bytes and the time of its last change."""
    status = file.stat()
    return os.path.realpath(file), status.st_size, status.st_mtime_ns


def put(new: Path, path: Path) -> None:
    """Move a new file or folder to `path`, after all of it has been written to the disk.

    `path` is in the cache; whatever is there is replaced, but a new folder replaces no other one.
    """
    for part in [new, *new.iterdir()] if new.is_dir() else [new]:
        to_disk(part)
    if path.is_dir() and not new.is_dir():
        remove(path)
    new.replace(path)
    with suppress(OSError):  # some file systems cannot sync folders; what was moved is whole
        to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
