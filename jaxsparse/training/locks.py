"""Locks: only one process at a time writes to a folder."""

import errno
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxsparse.machine import is_running
from jaxsparse.training.errors import RunError, one_line, writing
from jaxsparse.training.files import partial_name

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK, HOLDER = ".lock", ".lock-holder"

# Errors of file systems that cannot lock files: Lustre without its mount option, NFS without a
# lock service.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def locked(folder: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other processes from writing to `folder`, which must exist.

    The system frees the lock when a process ends, however it ends. On file systems without locks,
    a file names the process that holds the lock, and a warning is given. Such a lock is free again
    when that process has ended, if it ran on the same machine.

    `wait` is called again and again while another process holds the lock; it sleeps or raises.

    Raises:
      RunError: another process is writing to the folder and `wait` is None, or the folder cannot be
        locked.
    """
    # Opened for reading too: if it is a pipe, opening it for writing only would block.
    with writing(folder, RunError):
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        by_name = _flock(file, folder) is None
        if by_name:
            warnings.warn(
                f"files cannot be locked in {folder}; {HOLDER} there names the process that writes",
                stacklevel=4,
            )
        while not (_claim(folder / HOLDER) if by_name else _flock(file, folder)):
            if wait is None:
                raise RunError(f"{folder} is being written by another process{_hint(folder)}")
            wait()
        try:
            yield
        finally:
            if by_name:
                with suppress(OSError):
                    (folder / HOLDER).unlink()
    finally:
        os.close(file)


def _flock(file: int, folder: Path) -> bool | None:
    """Whether we got the system's lock; None if the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise RunError(f"{folder} cannot be locked: {one_line(error)}") from error


def _claim(holder: Path) -> bool:
    """Whether we got the lock by making `holder`, a link that only one process can make."""
    own = holder.with_name(partial_name(""))
    with writing(holder, RunError):
        try:
            own.write_text(f"{os.getpid()} {socket.gethostname()}", encoding="utf-8")
            for _ in range(2):
                with suppress(FileExistsError):
                    os.link(own, holder)
                    return True
                if _lives(_read(holder)) or not _remove_ended(holder):
                    return False
            return False
        finally:
            own.unlink(missing_ok=True)


def _remove_ended(holder: Path) -> bool:
    """Remove the link of a process that has ended; False if another process got the lock first."""
    # Moved, not deleted: since it was read, another process may have replaced it by its own.
    moved = holder.with_name(partial_name(""))
    try:
        with suppress(FileNotFoundError):
            holder.rename(moved)
        if not _lives(_read(moved)):
            return True
        with suppress(FileExistsError):
            os.link(moved, holder)
        return False
    finally:
        moved.unlink(missing_ok=True)


def _read(holder: Path) -> tuple[int, str]:
    try:
        number, host = holder.read_text(encoding="utf-8").split(maxsplit=1)
        return int(number), host
    except (OSError, ValueError):
        return 0, ""


def _lives(process: tuple[int, str]) -> bool:
    """Whether a process is running; assumed if it is on another machine."""
    number, host = process
    if host != socket.gethostname() or os.name != "posix":
        return bool(host)
    return is_running(number)


def _hint(folder: Path) -> str:
    """The process that the lock file names, and what to do if it has ended."""
    number, host = _read(folder / HOLDER)
    if not host:
        return ""
    return f", {number} on {host}; if that has ended, delete {folder / HOLDER}"
