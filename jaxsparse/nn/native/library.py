"""Compiles the C++ sources of this folder, once for each kind of processor, and loads them."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jaxlib

from jaxsparse.user_cache import code_dir, partial, remove

_FOLDER = Path(__file__).parent
_HANDLERS = tuple(
    f"{kind}{way}" for kind in ("Block", "Gram", "Unit", "Join") for way in ("Forward", "Backward")
)
_NUMBERS = ("JaxsparseLanes", "JaxsparseFewInputs")
_log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()
_BUILD_SECONDS = 180  # it takes about ten


class Library(NamedTuple):
    """What was loaded.

    Attributes:
      targets: the name that XLA knows each handler by. It tells versions apart, so that a program
        compiled with one is not run with another.
      lanes: numbers in a vector of the processor; residuals have channels in multiples of it.
      few_inputs: channels of images up to which a unit gives no gradient of them.
    """

    targets: dict[str, str]
    lanes: int
    few_inputs: int


class NoLibrary(Exception):
    """The library cannot be had here; the message says why, on one line."""


def available() -> bool:
    """Whether the operations can be had here: that takes a C++ compiler."""
    return why_not() is None


def why_not() -> str | None:
    """Why the operations cannot be had here, on one line; None where they can."""
    try:
        load()
    except NoLibrary as reason:
        return str(reason)
    return None


def load() -> Library:
    """Build where that is still to be done, load, and tell XLA, once in a process.

    Raises:
      NoLibrary: there is no compiler that works.
    """
    with _one_at_a_time:
        found = _load()
    if isinstance(found, str):
        raise NoLibrary(found)
    return found


@functools.lru_cache(maxsize=1)
def _load() -> Library | str:
    """The library, or why there is none, which is not tried again."""
    try:
        path, loaded = built()
    except NoLibrary as reason:
        return str(reason)
    key = path.stem.split("-")[0]
    targets = {name: f"jaxsparse_{name}_{key}" for name in _HANDLERS}
    for name, target in targets.items():
        handler = jax.ffi.pycapsule(getattr(loaded, f"Jaxsparse{name}"))
        jax.ffi.register_ffi_target(target, handler, platform="cpu")
    return Library(targets, *(ctypes.c_int.in_dll(loaded, name).value for name in _NUMBERS))


def built() -> tuple[Path, ctypes.CDLL]:
    """The library of these sources for this machine, from the user's cache or built into it.

    The compiler is $CXX, which may have arguments, or the first to be found of c++, g++ and
    clang++.

    Returns:
      Its file, named by a digest of all that decides what is in it and one of its bytes, and the
      library.

    Raises:
      NoLibrary: there is no compiler that works.
    """
    command = [*_compiler(), *_flags()]
    digest = hashlib.sha256(repr((command, _processor(), jaxlib.__version__)).encode())
    for source in sorted([*_FOLDER.glob("*.h"), _FOLDER / "handlers.cc"]):
        digest.update(source.read_bytes())
    key = digest.hexdigest()[:16]
    try:
        folder = code_dir("native")
        found = _open(folder, key)
        if found is None:
            _build(command, folder, key)
            found = _open(folder, key)
    except OSError as error:
        where = error.filename or "the cache"
        raise NoLibrary(f"{where} cannot be written: {error.strerror}") from error
    if found is None:
        raise NoLibrary(f"what {command[0]} wrote cannot be read")
    return found


def _compiler() -> list[str]:
    """The compiler and its first arguments."""
    named = os.environ.get("CXX", "").strip()
    if not named:
        found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if found is None:
            raise NoLibrary("there is no C++ compiler")
        return [found]
    words = [named]
    if not shutil.which(named):  # which may be the name of a file with spaces in it
        with suppress(ValueError):
            words = shlex.split(named)
    found = shutil.which(words[0])
    if found is None:
        raise NoLibrary(f"there is no C++ compiler: CXX is {named!r}, which cannot be run")
    return [found, *words[1:]]


def _flags() -> list[str]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    native = "-march=native" if x86 else "-mcpu=native"
    hidden = "-fvisibility-inlines-hidden"  # so that calls within the library are direct
    headers = ["-isystem", jax.ffi.include_dir()]
    return ["-std=c++17", "-O3", native, "-fPIC", "-shared", hidden, *headers]


def _processor() -> str:
    """What decides the machine code that may run here: one folder may serve several machines."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return str(sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))}))
    return f"{platform.machine()} {platform.processor()}"


def _open(folder: Path, key: str) -> tuple[Path, ctypes.CDLL] | None:
    """The library, if there is a whole one: of half a one, or another's, the system may crash."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        if path.name != _name(key, path):
            remove(path)
            continue
        with suppress(OSError):  # of another machine's system
            return path, ctypes.CDLL(str(path))
    return None


def _name(key: str, path: Path) -> str | None:
    """What a library is called: it tells what its bytes are. None for what is no readable file."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with path.open("rb") as file:
            return f"{key}-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.so"
    except OSError:
        return None


def _build(command: Sequence[str], folder: Path, key: str) -> None:
    """Compile into the folder, where a whole library appears or none."""
    # A warning, since that is seen where nobody has set up logging: it takes a while.
    compiler = Path(command[0]).name
    _log.warning("compiling the convolution blocks with %s (once per machine) ...", compiler)
    with partial(folder / key) as beside:
        beside.mkdir()
        library = beside / "library.so"
        sources = [str(_FOLDER / "handlers.cc"), "-o", str(library)]
        trouble = _compile([*command, *sources], beside) or _try(library)
        if trouble:
            raise NoLibrary(f"{command[0]} failed: {trouble}")
        with library.open("rb") as file:
            os.fsync(file.fileno())
        if name := _name(key, library):
            library.replace(folder / name)  # at once, for several processes may build


# Runs its arguments, and ends whatever they started when its input ends: that does when this
# process ends, however it does.
_GUARD = """
exec 3<&0
{ read -r _ <&3; kill -9 0; } &
exec 3<&-
"$@" </dev/null
status=$?
kill -9 $!
exit $status
"""


def _compile(command: Sequence[str], folder: Path) -> str | None:
    """Run a compiler, with its temporary files in `folder`.

    Returns:
      None, or in one line what went wrong.
    """
    ends = os.pipe()
    with (
        os.fdopen(ends[0]) as alive,
        os.fdopen(ends[1], "w") as own,
        (folder / "messages").open("w+b") as messages,
    ):
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", *command],
            stdin=alive,
            stdout=messages,
            stderr=messages,
            env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"},
            start_new_session=True,  # a group of processes, to be ended as one
        )
        try:
            status = process.wait(_BUILD_SECONDS)
        except subprocess.TimeoutExpired:
            return f"it had not ended after {_BUILD_SECONDS} s"
        finally:
            own.close()
            process.wait()
        messages.seek(0)
        said = _first_error(messages.read(100_000).decode(errors="replace"))
    return (said or f"exit status {status}") if status else None


def _first_error(messages: str) -> str:
    """The first line that tells of an error, else the first, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", messages)
    lines = [text for line in plain.splitlines() if (text := " ".join(line.split()))]
    first = next(
        (line for line in lines if re.search(r"\berror\b", line, re.I)), "".join(lines[:1])
    )
    return "".join(c if c.isprintable() else "?" for c in first)[:300]


_TRIAL = "import ctypes, sys; [getattr(ctypes.CDLL(sys.argv[1]), name) for name in sys.argv[2:]]"


def _try(library: Path) -> str | None:
    """Load a library in another process, for of half a one it may crash.

    Returns:
      None, or in one line what is wrong with it.
    """
    if not library.is_file():
        return "it wrote no library"
    names = [*_NUMBERS, *(f"Jaxsparse{name}" for name in _HANDLERS)]
    trial = [sys.executable, "-I", "-S", "-c", _TRIAL, str(library), *names]
    done = subprocess.run(trial, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return None
    said = "".join(done.stderr.splitlines()[-1:])
    return f"what it wrote cannot be loaded: {said or f'exit status {done.returncode}'}"
