"""Compiles the C++ sources of this folder, once for each kind of processor, and loads them."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import threading
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jaxlib

from jaxsparse.user_cache import cache_dir

_FOLDER = Path(__file__).parent
_HANDLERS = ("BlockForward", "BlockBackward", "GramForward", "GramBackward")
_log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()


class Library(NamedTuple):
    """What was loaded.

    Attributes:
      targets: the name that XLA knows each handler by. It tells versions apart, so that a program
        compiled with one is not run with another.
      lanes: numbers in a vector of the processor; residuals have channels in multiples of it.
    """

    targets: dict[str, str]
    lanes: int


def available() -> bool:
    """Whether the operations can be had here: that takes a C++ compiler, or an earlier build."""
    return load() is not None


def load() -> Library | None:
    """Build where that is still to be done, load, and tell XLA, once in a process.

    Returns:
      None where there is no compiler that works, which is logged.
    """
    with _one_at_a_time:
        return _load()


@functools.lru_cache(maxsize=1)
def _load() -> Library | None:
    found = built()
    if found is None:
        return None
    path, loaded = found
    targets = {name: f"jaxsparse_{name}_{path.stem}" for name in _HANDLERS}
    for name, target in targets.items():
        handler = jax.ffi.pycapsule(getattr(loaded, f"Jaxsparse{name}"))
        jax.ffi.register_ffi_target(target, handler, platform="cpu")
    return Library(targets, ctypes.c_int.in_dll(loaded, "JaxsparseLanes").value)


def built() -> tuple[Path, ctypes.CDLL] | None:
    """The library of these sources for this machine, from the user's cache or built into it.

    The compiler is $CXX, or the first to be found of c++, g++ and clang++.

    Returns:
      Its file, named by a digest of all that decides what is in it, and the library. None where
      there is no compiler that works.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        _log.info("no C++ compiler: convolutions are XLA's, which take nearly twice the time")
        return None
    command = [compiler, *_flags()]
    digest = hashlib.sha256(repr((command, _processor(), jaxlib.__version__)).encode())
    for source in sorted([*_FOLDER.glob("*.h"), _FOLDER / "handlers.cc"]):
        digest.update(source.read_bytes())
    path = cache_dir() / "native" / f"{digest.hexdigest()[:16]}.so"
    loaded = _open(path)
    if loaded is None and _build(command, path):
        loaded = _open(path)
    return None if loaded is None else (path, loaded)


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


def _open(path: Path) -> ctypes.CDLL | None:
    with suppress(OSError):
        return ctypes.CDLL(str(path))
    return None


def _build(command: Sequence[str], path: Path) -> bool:
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sources = [str(_FOLDER / "handlers.cc"), "-o", str(partial)]
        subprocess.run([*command, *sources], check=True, capture_output=True, text=True)
        partial.replace(path)  # at once, for several processes may build
    except subprocess.CalledProcessError as error:
        _log.warning("convolutions are XLA's, as %s failed: %s", command[0], error.stderr.strip())
        return False
    except OSError as error:
        _log.warning("convolutions are XLA's, as %s cannot be written: %s", path, error.strerror)
        return False
    finally:
        with suppress(OSError):
            partial.unlink()
    return True
