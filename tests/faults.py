"""Kills and failures at every call to the file system that an operation makes; see faults.c.

The operations are in fault_operations.py.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).resolve().parent
KINDS = {"k": "killed", "h": "killed within a write", "e": "an error", "f": "a full disk"}

# It forks for each operation, so that slow imports happen once.
_SERVER = """
import ctypes, json, os, sys
import fault_operations
faults = ctypes.CDLL(os.environ["LD_PRELOAD"])
faults.arm.argtypes = [ctypes.c_char, ctypes.c_long, ctypes.c_char_p]
for line in sys.stdin:
    name, fault, call, place = json.loads(line)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        error = None
        faults.arm(fault.encode(), call, os.fsencode(place))
        try:
            getattr(fault_operations, name)(fault_operations.Path(place))
        except BaseException as raised:
            error = raised
        calls = faults.counted()
        faults.arm(b"\\0", 0, b"")
        told = [type(error).__name__ if error else "done", str(error or ""), calls]
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    os.waitpid(child, 0)
    print(text or json.dumps(["killed", "", 0]), flush=True)
"""


class Outcome(NamedTuple):
    """How an operation ended: "done", "killed" or the name of an exception, and its message.

    `calls` counts the file-system calls; it is unknown if the operation was killed.
    """

    ended: str
    message: str
    calls: int


def build(folder: Path) -> Path:
    """The library that makes the faults; skips the test if it cannot be built."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("c++")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("faults are injected on Linux, by a library that wants a C compiler")
    library = folder / "faults.so"
    source = str(HERE / "faults.c")
    command = [compiler, "-x", "c", "-shared", "-fPIC", "-o", str(library), source, "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def environment(library: Path, fault: str = "", call: int = 0, place: Path | None = None):
    """The environment of a process with a fault at a call under `place`."""
    armed = {"FAULTS": f"{fault}:{call}:{place}"} if fault else {}
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    own = {"LD_PRELOAD": str(library), "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **own, **armed}


class Faults:
    """A process that runs operations, each in a fork with one fault."""

    def __init__(self, library: Path):
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _SERVER],
            env=environment(library), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, operation: str, place: Path, fault: str = "k", call: int = 0) -> Outcome:
        """Run an operation on `place`, with a fault at this call under it; 0: no fault."""
        server = self._server
        server.stdin.write(json.dumps([operation, fault, call, str(place)]) + "\n")
        server.stdin.flush()
        return Outcome(*json.loads(server.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
