"""The folders on the user's disk in which everything that takes long to make is kept."""

import atexit
import contextlib
import errno
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from jaxsparse.errors import DataError

_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The folder that prepared data is kept in, made for its user alone where there is none.

    The first of: $JAXSPARSE_CACHE; $XDG_CACHE_HOME/jaxsparse; ~/.cache/jaxsparse. What
    $JAXSPARSE_CACHE names is used whoever owns it, for data may be shared: what is loaded as code
    goes to `code_dir`. The others must be the user's own, else it is a folder of the user's own
    among the system's temporary ones.

    Returns:
      The folder, `~` expanded. It does not exist where $JAXSPARSE_CACHE names one that cannot be
      made.

    Raises:
      DataError: $JAXSPARSE_CACHE begins with `~` and a name that no user has.

    Example:
      >>> os.environ["JAXSPARSE_CACHE"] = "/data/jaxsparse"
      >>> cache_dir()
      PosixPath('/data/jaxsparse')
    """
    if named := os.environ.get("JAXSPARSE_CACHE"):
        path = _expanded(named)
        with contextlib.suppress(OSError):  # told of by those who write there
            _make(path)
        return path
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, or not one to write to
        path = _default()
        if _is_trusted(path):
            _make(path)
            return path
    return _temporary()


def code_dir(name: str) -> Path:
    """A folder for compiled code: what lies there runs, so no other user may write to it.

    `name` in `cache_dir()` where it, and the folders above it, are such; else in a folder of the
    user's own among the system's temporary ones, which is logged once.

    Args:
      name: what kind of code.

    Returns:
      The folder, without symbolic links. It exists.

    Raises:
      OSError: there is no such folder and none can be made.
      DataError: as in `cache_dir`.

    Example:
      >>> code_dir("native").stat().st_mode & 0o077
      0
    """
    wanted = cache_dir() / name
    try:
        for folder in (wanted.parent, wanted):
            _make(folder)
            path = folder.resolve(strict=True)
            if exposed := _exposed(path):
                break
        else:
            return path
        reason = f"other users may write to {exposed}"
    except OSError as error:
        reason = f"{wanted} cannot be written: {error.strerror}"
    own = _temporary() / name
    _make(own)
    if _exposed(own) is not None:
        raise OSError(errno.EPERM, "no folder that only this user may write to", str(own))
    _warn_once(f"compiled code is kept in {own}, as {reason}")
    return own


@contextlib.contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under, before all is renamed to `path` at once.

    What is there at the end is removed. So is what processes that were ended left in the folder.

    Args:
      path: the file or folder to be; its folder exists.

    Yields:
      The name; there is nothing there.

    Example:
      >>> with partial(Path("images.npz")) as beside:
      ...     beside.write_bytes(b"...")
      ...     beside.replace("images.npz")
    """
    _clear(path.parent)
    own = f".{path.name}-{_place()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    beside = path.with_name(own)
    try:
        yield beside
    finally:
        remove(beside)


def remove(path: Path) -> None:
    """Remove a file, link or folder as far as that can be done; also where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


_PARTIAL = re.compile(r"\..*-(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.partial")
# As they were once called, without the process.
_OLD_PARTIAL = re.compile(r"\..*[0-9a-f]{12}(\.npz\.|-)[0-9a-f]{32}")
_DAY = 24 * 3600


def _clear(folder: Path) -> None:
    """Remove partial files and folders whose process has ended, or that a day has not changed."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            named = _PARTIAL.fullmatch(path.name)
            ended = named and named["place"] == _place() and not _is_running(int(named["pid"]))
            old = (named or _OLD_PARTIAL.fullmatch(path.name)) and _age(path) > _DAY
            if ended or old:
                remove(path)


def _place() -> str:
    """Tells apart where a process number means a process: the machine and the container."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _age(path: Path) -> float:
    """Seconds since the path, or anything right in it, was changed last."""
    parts = [path]
    if path.is_dir() and not path.is_symlink():
        parts += path.iterdir()
    return time.time() - max(part.lstat().st_mtime for part in parts)


def _expanded(named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError:
        message = f"JAXSPARSE_CACHE: got {named!r}, want a folder; no user has the name after ~"
        raise DataError(message) from None


def _default() -> Path:
    shared = os.environ.get("XDG_CACHE_HOME")
    base = Path(shared).expanduser() if shared else Path.home() / ".cache"
    if not base.is_absolute():  # no place, but one in every folder that a run is started from
        raise OSError(errno.EINVAL, "not an absolute path", str(base))
    return base / "jaxsparse"


def _make(path: Path) -> None:
    """Make a folder, and those above it, so that only the user may enter."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def _is_trusted(path: Path) -> bool:
    """Whether the path, or where there is none the nearest folder above it, is ours or root's."""
    nearest = next(p for p in (path, *path.parents) if p.exists())
    return not hasattr(os, "geteuid") or nearest.stat().st_uid in (os.geteuid(), 0)


def _exposed(path: Path) -> Path | None:
    """The folder by way of which other users can change what is in `path`, or None."""
    if not hasattr(os, "geteuid"):
        return None
    user = os.geteuid()
    found = None
    for folder in (path, *path.parents):
        status = folder.stat()
        owners = {user, 0}
        writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if folder != path:
            # Whoever owns / rules the machine, also where a container gives root another number.
            owners.add(Path("/").stat().st_uid)
            writable = writable and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in owners or writable:
            found = folder
        elif status.st_uid == user and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            found = None  # others cannot enter, whatever lies below
    return found


def _temporary() -> Path:
    """A folder that only this user may enter, among the system's temporary ones.

    It stays, so that the next process finds what this one made, unless another user was first to
    take its name.
    """
    base = Path(tempfile.gettempdir()).resolve()
    user = os.geteuid() if hasattr(os, "geteuid") else "user"
    path = base / f"jaxsparse-{user}"
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        if not path.is_symlink() and _exposed(path) is None:
            return path
    return _for_this_process(base)


@functools.cache
def _for_this_process(base: Path) -> Path:
    path = Path(tempfile.mkdtemp(prefix="jaxsparse-", dir=base))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    _warn_once(f"{path} serves as the cache, and is removed at the end; set JAXSPARSE_CACHE")
    return path


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)
