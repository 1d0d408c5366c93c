"""One run by several processes, on one machine or many: joining, leaving, one line when one dies.

JAX connects the processes and notices when one of them dies. Then its C++ code ends the others with
pages of text. Here that text goes to a file, and each process prints one line instead.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from experiments import cli, signals

# A process that says nothing for so long is dead; its death ends the others within a minute.
_HEARTBEAT_SECONDS = 45
# How long processes wait for each other at the end: the first one writes and draws meanwhile.
_SHUTDOWN_SECONDS = 600
_GONE = "another process of this run has ended"
# Errors of operations between processes when one of them is gone.
_OTHER_IS_GONE = re.compile("gloo|nccl|coordination service|socket closed|connection", re.I)


@dataclasses.dataclass(frozen=True)
class Processes:  # no docstring: it would be a text of --help
    distributed: bool = False
    """run as one of several processes that divide the run; SLURM, Open MPI and Kubernetes say
    which one, otherwise give the three flags below"""
    coordinator: str | None = None
    """HOST:PORT of process 0; the port is free there, and all hosts can reach it"""
    processes: int | None = None
    """number of processes"""
    process: int | None = None
    """number of this process, from 0"""

    def words(self) -> list[str]:
        """The flags as words, to show a command."""
        words = ["--distributed"] if self.distributed else []
        for name in ("coordinator", "processes", "process"):
            if (value := getattr(self, name)) is not None:
                words.append(f"--{name}={value}")
        return words


ALONE = Processes()


def check(flags: Processes) -> None:
    """Refuse flags that do not go together, with one line and exit status 2."""
    values = {name: getattr(flags, name) for name in ("coordinator", "processes", "process")}
    given = [name for name, value in values.items() if value is not None]
    if given and not flags.distributed:
        cli.fail(f"--{given[0]} is read only with --distributed")
    if missing := [name for name in values if given and name not in given]:
        cli.fail(f"--{given[0]} also needs --{missing[0]}")
    if not given:
        return
    host, _, port = (flags.coordinator or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        cli.fail(f"--coordinator must be HOST:PORT, got {flags.coordinator!r}")
    count, number = flags.processes or 0, flags.process or 0
    if count < 1:
        cli.fail(f"--processes must be 1 or more, got {count}")
    if not 0 <= number < count:
        cli.fail(f"--process must be 0 to {count - 1}, got {number}")


@contextlib.contextmanager
def joined(flags: Processes) -> Iterator[None]:
    """Join the other processes before JAX is first used; leave together, or at once on an error.

    The context prints its errors itself.
    """
    if not flags.distributed:
        yield
        return
    log = _divert_native_output()
    status: Any = 0
    try:
        with cli.one_line_errors():
            with _aborted_as("--distributed: the processes could not connect", log):
                _join(flags)
            with _aborted_as(_GONE, log):
                try:
                    yield
                except Exception as error:
                    if not is_of_a_gone_process(error):
                        raise
                    _end(_GONE, log)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if isinstance(status, int) and status and status < 128:
        # The others may wait for this process. They end when they notice that it is gone.
        _leave_at_once(status)
    _leave_together(log)
    if status:
        raise SystemExit(status)


def is_of_a_gone_process(error: Exception) -> bool:
    """Whether JAX raises this error because another process is gone; it has no class for that."""
    # The message of a user's error may name anything.
    ours = isinstance(error, tuple(cli.our_errors()))
    return not ours and bool(_OTHER_IS_GONE.search(str(error)))


def _join(flags: Processes) -> None:
    import jax

    # JAX would take SIGTERM from us; our handler also knows Ctrl-C.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            flags.coordinator,
            flags.processes,
            flags.process,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if flags.coordinator is None:
            cli.fail(
                "--distributed: found no SLURM, Open MPI or Kubernetes job; give --coordinator,"
                " --processes and --process"
            )
        cli.fail(f"--distributed: {error}")
    except Exception as error:  # it has no class of its own
        cli.fail(f"--distributed: the processes could not connect: {error}")
    # JAX's own exit handler would wait for processes that may be dead.
    atexit.unregister(jax.distributed.shutdown)


def check_devices() -> None:
    """Refuse processes with different numbers of devices: arrays are divided evenly."""
    import jax

    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(i) for i in range(jax.process_count())]
    if len(set(counts)) > 1:
        shown = ", ".join(map(str, counts))
        cli.fail(f"--distributed: the processes must have equally many devices, they have {shown}")


def _leave_together(log: Path) -> None:
    import jax

    with contextlib.suppress(Exception), _aborted_as(_GONE, log):
        jax.distributed.shutdown()
    with contextlib.suppress(OSError):
        log.unlink()


def _leave_at_once(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    signals.clean_up()
    os._exit(status)


# ---- when another process dies


_once = threading.Lock()


def _end(what: str, log: Path) -> NoReturn:
    """Print one line and leave."""
    if not _once.acquire(blocking=False):
        threading.Event().wait()  # another thread prints the line and ends the process
    signals.last_line(f"{what} (JAX's messages: {log}){signals.how_to_continue()}")
    _leave_at_once(1)


@contextlib.contextmanager
def _aborted_as(what: str, log: Path) -> Iterator[None]:
    """Let SIGABRT end the process with one line: JAX aborts when another process dies.

    A handler of Python's would not run: the thread that aborts ends the process when it returns.
    """
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: _end(what, log))
    before = library.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        library.signal(signal.SIGABRT, before)


def _divert_native_output() -> Path:
    """Send what C and C++ code prints to a file; Python's streams stay where they are."""
    handle, name = tempfile.mkstemp(prefix="jaxsparse-", suffix=".log")
    for stream_name in ("stdout", "stderr"):
        stream = getattr(sys, stream_name)
        stream.flush()
        number = stream.fileno()
        own = os.fdopen(os.dup(number), "w", 1, encoding=stream.encoding, errors=stream.errors)
        setattr(sys, stream_name, own)
        os.dup2(handle, number)
    os.close(handle)
    return Path(name)
