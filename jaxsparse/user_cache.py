"""The user's cache folders, for prepared data and compiled code."""

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
from jaxsparse.machine import is_running

_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The folder for prepared data; created if needed, with access for the user alone.

    The first of $JAXSPARSE_CACHE, $XDG_CACHE_HOME/jaxsparse and ~/.cache/jaxsparse that is set.
    $JAXSPARSE_CACHE may belong to another user, as data may be shared (code goes to `code_dir`).
    The others must belong to the user or root; otherwise a private temporary folder is used. The
    folder does not exist if $JAXSPARSE_CACHE names one that cannot be created.

    Raises:
      DataError: $JAXSPARSE_CACHE begins with `~` and the name of an unknown user.
    """
    if named := os.environ.get("JAXSPARSE_CACHE"):
        path = _expanded(named)
        with contextlib.suppress(OSError):  # reported when something is written there
            _make(path)
        return path
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, or not writable
        path = _default()
        if _is_trusted(path):
            _make(path)
            return path
    return _temporary()


def code_dir(name: str) -> Path:
    """A folder for compiled code. Its files are executed, so no other user may write to it.

    The folder `name` in `cache_dir()`, if no other user may write to it or to a folder above it.
    Otherwise it is in a private temporary folder, and this is logged once. It exists and its path
    has no symbolic links.

    Raises:
      OSError: no such folder can be created.
      DataError: as in `cache_dir`.
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
    _warn_once(f"compiled code is kept in {own} because {reason}")
    return own


@contextlib.contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`: write there, then rename to `path` atomically.

    Whatever is left at the temporary path is removed at the end. Temporary files of killed
    processes are removed from the folder, too.

    Examples:
      >>> with partial(Path("images.npz")) as temporary:
      ...     temporary.write_bytes(b"...")
      ...     temporary.replace("images.npz")
    """
    _clear(path.parent)
    name = f".{path.name}-{_place()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    temporary = path.with_name(name)
    try:
        yield temporary
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file, link or folder as far as possible; no error if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


_PARTIAL = re.compile(r"\..*-(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.partial")
# Names used by earlier versions, without the process id.
_OLD_PARTIAL = re.compile(r"\..*[0-9a-f]{12}(\.npz\.|-)[0-9a-f]{32}")
_DAY = 24 * 3600


def _clear(folder: Path) -> None:
    """Remove partial files and folders whose process has ended, or not changed for a day."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            named = _PARTIAL.fullmatch(path.name)
            ended = named and named["place"] == _place() and not is_running(int(named["pid"]))
            old = (named or _OLD_PARTIAL.fullmatch(path.name)) and _age(path) > _DAY
            if ended or old:
                remove(path)


def _place() -> str:
    """An identifier of the machine and container, within which a process id is unique."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _age(path: Path) -> float:
    """Seconds since the last change of the path or of an entry directly in it."""
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
    if not base.is_absolute():  # it would depend on the current directory
        raise OSError(errno.EINVAL, "not an absolute path", str(base))
    return base / "jaxsparse"


def _make(path: Path) -> None:
    """Create a folder, and those above it, with access for the user alone."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def _is_trusted(path: Path) -> bool:
    """True if the path, or the nearest existing folder above it, belongs to the user or root."""
    nearest = next(p for p in (path, *path.parents) if p.exists())
    return not hasattr(os, "geteuid") or nearest.stat().st_uid in (os.geteuid(), 0)


def _exposed(path: Path) -> Path | None:
    """A folder through which other users could change what is in `path`, or None."""
    if not hasattr(os, "geteuid"):
        return None
    user = os.geteuid()
    found = None
    for folder in (path, *path.parents):
        status = folder.stat()
        owners = {user, 0}
        writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if folder != path:
            # The owner of / is root, also in a container where root has another user id.
            owners.add(Path("/").stat().st_uid)
            writable = writable and not status.st_mode & stat.S_ISVTX
        if status.st_uid not in owners or writable:
            found = folder
        elif status.st_uid == user and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            found = None  # others cannot enter, so folders below do not matter
    return found


def _temporary() -> Path:
    """A temporary folder that only this user may enter.

    It has a fixed name and is kept for the next process. If another user has taken that name, the
    folder is one for this process alone.
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
    _warn_once(f"{path} is used as the cache and removed at exit; set JAXSPARSE_CACHE")
    return path


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)
