"""Compile the C++ sources of this folder, once per kind of processor, and load the library."""

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
    f"{kind}{way}"
    for kind in ("Block", "Gram", "Unit", "Join", "Conv")
    for way in ("Forward", "Backward")
)
_NUMBERS = ("JaxsparseLanes", "JaxsparseFewInputs")
_log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()
_BUILD_SECONDS = 180  # compiling takes about ten


class Library(NamedTuple):
    """The loaded library.

    Attributes:
      targets: the XLA target name of each handler. It contains the version of the library, so a
        program compiled with one version does not run with another.
      lanes: floats per vector register; the channels of residuals are padded to a multiple of it.
      few_inputs: the most channels of images for which `UnitBackward` does not compute their
        gradient.
    """

    targets: dict[str, str]
    lanes: int
    few_inputs: int


class NoLibrary(Exception):
    """The library is not available; the message says why, on one line."""


def available() -> bool:
    """True if the library is available, which needs a C++ compiler."""
    return why_not() is None


def why_not() -> str | None:
    """The reason, on one line, why the library is not available; None if it is."""
    try:
        load()
    except NoLibrary as reason:
        return str(reason)
    return None


def load() -> Library:
    """Compile the library if needed, load it and register it with XLA, once per process."""
    with _one_at_a_time:
        found = _load()
    if isinstance(found, str):
        raise NoLibrary(found)
    return found


@functools.lru_cache(maxsize=1)
def _load() -> Library | str:
    """The library, or the reason why there is none. A failure is cached, too."""
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
    """The library for this machine and its file, from the user's cache; compiled if needed.

    The compiler is $CXX, which may include arguments, or the first of c++, g++ and clang++ that is
    found. The file name consists of a digest of everything that the library depends on, and a
    digest of its bytes.
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
        raise NoLibrary(f"the library that {command[0]} wrote cannot be read")
    return found


def _compiler() -> list[str]:
    """The compiler, and the arguments in $CXX."""
    named = os.environ.get("CXX", "").strip()
    if not named:
        found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if found is None:
            raise NoLibrary("there is no C++ compiler")
        return [found]
    words = [named]
    if not shutil.which(named):  # a path may contain spaces
        with suppress(ValueError):
            words = shlex.split(named)
    found = shutil.which(words[0])
    if found is None:
        raise NoLibrary(f"there is no C++ compiler: CXX is {named!r}, which cannot be run")
    return [found, *words[1:]]


def _flags() -> list[str]:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    native = "-march=native" if x86 else "-mcpu=native"
    hidden = "-fvisibility-inlines-hidden"  # makes calls within the library direct
    headers = ["-isystem", jax.ffi.include_dir()]
    return ["-std=c++17", "-O3", native, "-fPIC", "-shared", hidden, *headers]


def _processor() -> str:
    """The processor's features and model, as several machines may share one cache folder."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return str(sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))}))
    return f"{platform.machine()} {platform.processor()}"


def _open(folder: Path, key: str) -> tuple[Path, ctypes.CDLL] | None:
    """The library and its file, or None. Incomplete files are removed: loading one may crash."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        if path.name != _name(key, path):
            remove(path)
            continue
        with suppress(OSError):  # compiled on another operating system
            return path, ctypes.CDLL(str(path))
    return None


def _name(key: str, path: Path) -> str | None:
    """The file name of a library, with a digest of its bytes; None if it cannot be read."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with path.open("rb") as file:
            return f"{key}-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.so"
    except OSError:
        return None


def _build(command: Sequence[str], folder: Path, key: str) -> None:
    """Compile the library and move it to the folder atomically."""
    # A warning is shown even if logging is not set up.
    compiler = Path(command[0]).name
    _log.warning("compiling the convolution blocks with %s (once per machine) ...", compiler)
    with partial(folder / key) as temporary:
        temporary.mkdir()
        library = temporary / "library.so"
        sources = [str(_FOLDER / "handlers.cc"), "-o", str(library)]
        trouble = _compile([*command, *sources], temporary) or _try(library)
        if trouble:
            raise NoLibrary(f"{command[0]} failed: {trouble}")
        with library.open("rb") as file:
            os.fsync(file.fileno())
        if name := _name(key, library):
            library.replace(folder / name)  # atomic, as several processes may compile at once


# Runs its arguments as a command. When stdin is closed, it kills the whole process group. That
# happens when this process ends, even if it is killed.
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
    """Run a compiler with its temporary files in `folder`; return an error on one line, or None."""
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
            start_new_session=True,  # a process group, which can be killed as a whole
        )
        try:
            status = process.wait(_BUILD_SECONDS)
        except subprocess.TimeoutExpired:
            return f"it did not finish within {_BUILD_SECONDS} s"
        finally:
            own.close()
            process.wait()
        messages.seek(0)
        said = _first_error(messages.read(100_000).decode(errors="replace"))
    return (said or f"exit status {status}") if status else None


def _first_error(messages: str) -> str:
    """The first line with the word "error", else the first line, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", messages)
    lines = [text for line in plain.splitlines() if (text := " ".join(line.split()))]
    first = next(
        (line for line in lines if re.search(r"\berror\b", line, re.I)), "".join(lines[:1])
    )
    return "".join(c if c.isprintable() else "?" for c in first)[:300]


_TRIAL = "import ctypes, sys; [getattr(ctypes.CDLL(sys.argv[1]), name) for name in sys.argv[2:]]"


def _try(library: Path) -> str | None:
    """Load a library in another process, as loading may crash; returns an error, or None."""
    if not library.is_file():
        return "it wrote no library"
    names = [*_NUMBERS, *(f"Jaxsparse{name}" for name in _HANDLERS)]
    trial = [sys.executable, "-I", "-S", "-c", _TRIAL, str(library), *names]
    done = subprocess.run(trial, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return None
    said = "".join(done.stderr.splitlines()[-1:])
    return f"its library cannot be loaded: {said or f'exit status {done.returncode}'}"
