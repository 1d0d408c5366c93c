"""Ctrl-C, SIGTERM and SIGHUP: one line and an end, from a command's first moment on.

No handler raises: where the exception comes up is chance, and a callback of the garbage collector
drops it; the command would go on. A thread deals with the signals instead, at once: the main one
may be compiling for a minute.
"""

# Few and quick ones: this is the first thing that a command imports.
import _thread
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

_NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_LOCK = _thread.allocate_lock()

_installed = False
_ending = "stopped"  # what a signal ends the process with
_saving: str | None = None  # within a run that saves when asked: the command that continues it
_asked: int | None = None  # the signal that asked it to
_said = False  # the last line has been written
at_end: list[Callable[[], object]] = []  # called where a signal ends the process, `atexit` is not


def handle() -> Callable[[], None] | None:
    """From now on a signal ends the process with one line; see `leave` and `saving`.

    Returns:
      What puts back the handlers of before; None where there is nothing to put back: they are
      ours already, or this is not the main thread, which alone may set them.
    """
    global _installed
    if _installed:
        return None
    _open_standard_streams()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        before_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    except ValueError:
        os.close(reader)
        os.close(writer)
        return None
    _thread.start_new_thread(_watch, (reader,))
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    # A command under nohup outlives its terminal.
    ours = [n for n in _NUMBERS if n == signal.SIGINT or before[n] != signal.SIG_IGN]
    for number in ours:
        signal.signal(number, _nothing)
    _installed = True

    def restore() -> None:
        global _installed
        for number in ours:
            signal.signal(number, before[number] or signal.SIG_DFL)
        signal.set_wakeup_fd(before_fd)
        os.close(writer)  # which ends the thread
        _installed = False

    return restore


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within it signals are dealt with as `handle` says."""
    restore = handle()
    try:
        yield
    finally:
        if restore is not None:
            restore()


def leave(line: str) -> None:
    """From now on a signal ends the process with this line."""
    global _ending, _said, _asked
    with _LOCK:
        _ending, _said, _asked = line, False, None


@contextlib.contextmanager
def saving(resume_command: str) -> Iterator[Callable[[], bool]]:
    """Within it the first signal asks the run to save and stop; a second one ends it at once.

    Until the run first asks it has nothing to save: a signal ends it at once.

    Args:
      resume_command: what continues the run.

    Returns:
      A context with the function that tells whether the run was asked to stop.
    """
    global _saving, _ending
    leave(f"stopped before the first step; continue with: {resume_command}")

    def should_stop() -> bool:
        global _saving
        _saving = resume_command
        return _asked is not None

    try:
        with handled():
            yield should_stop
    finally:
        with _LOCK:
            _saving, _ending = None, f"stopped; continue with: {resume_command}"


def asked() -> int | None:
    """The signal that asked the run to stop, if one did."""
    return _asked


def last_line(line: str) -> None:
    """Write the line that a command ends with; a signal that comes later adds none."""
    global _said
    line = line.encode(errors="backslashreplace").decode()  # names of files may be no text
    with _LOCK:
        _said = True
        with contextlib.suppress(OSError, ValueError):
            print(f"error: {line}", file=sys.stderr, flush=True)


def _watch(reader: int) -> None:
    """The thread: Python writes the number of each signal to the pipe as soon as it arrives."""
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number in _NUMBERS:
                _deal_with(number)
    os.close(reader)


def _deal_with(number: int) -> None:
    global _asked
    with _LOCK:
        if _saving is not None and _asked is None:
            _asked = number
            return
        line = _ending
        if _saving is not None:
            line = f"stopped at once, without saving; continue with: {_saving}"
        # Past Python's own buffers, which the main thread may hold.
        with contextlib.suppress(OSError):
            if os.isatty(1):  # a progress bar hides the cursor
                os.write(1, b"\r\x1b[K\x1b[?25h")
        with contextlib.suppress(OSError):
            if not _said:
                os.write(2, f"error: {line}\n".encode(errors="backslashreplace"))
        for function in at_end:
            with contextlib.suppress(Exception):
                function()
        os._exit(128 + number)


def _nothing(number, frame) -> None:
    pass


def _open_standard_streams() -> None:
    """Where the shell closed one (`>&-`), the next file opened would take what is printed."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115
