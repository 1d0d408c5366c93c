"""Ctrl-C, SIGTERM and SIGHUP end a command with one line, from its start on.

No handler raises an exception: it could come up anywhere, and in a callback of the garbage
collector Python would drop it. Instead a thread acts on the signals. It does so at once, even while
the main thread compiles for a minute.
"""

# Only modules that load quickly: a command imports this file first.
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
_ending = "stopped"  # the line that a signal ends the process with
_saving: str | None = None  # while a run can save: the command that resumes it
_asked: int | None = None  # the signal that asked the run to save and stop
_written = False  # the last line has been printed
at_end: list[Callable[[], object]] = []  # called when a signal ends the process; `atexit` is not


def handle() -> Callable[[], None] | None:
    """Make signals end the process with one line; see `leave` and `saving`.

    Returns a function that restores the previous handlers. It is None if nothing was changed: our
    handlers were there already, or this is not the main thread, and only that may set handlers.
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
    # Under nohup SIGHUP is ignored and stays so.
    ours = [n for n in _NUMBERS if n == signal.SIGINT or before[n] != signal.SIG_IGN]
    for number in ours:
        signal.signal(number, _nothing)
    _installed = True

    def restore() -> None:
        global _installed
        for number in ours:
            signal.signal(number, before[number] or signal.SIG_DFL)
        signal.set_wakeup_fd(before_fd)
        os.close(writer)  # this ends the thread
        _installed = False

    return restore


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """`handle` as a context."""
    restore = handle()
    try:
        yield
    finally:
        if restore is not None:
            restore()


def leave(line: str) -> None:
    """Set the line that a signal ends the process with."""
    global _ending, _written, _asked
    with _LOCK:
        _ending, _written, _asked = line, False, None


@contextlib.contextmanager
def saving(resume_command: str) -> Iterator[Callable[[], bool]]:
    """Let the first signal ask the run to save and stop; a second one ends it at once.

    Yields the function that says whether the run was asked to stop. Before its first call the run
    has nothing to save, and the first signal already ends it at once.
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


def how_to_continue() -> str:
    """What an error message adds while a run can save: the command that resumes it."""
    return "" if _saving is None else f"; continue with: {_saving}"


def last_line(line: str) -> None:
    """Print the last line of a command; a later signal prints none."""
    global _written
    line = line.encode(errors="backslashreplace").decode()  # file names may not be valid UTF-8
    with _LOCK:
        _written = True
        with contextlib.suppress(OSError, ValueError):
            print(f"error: {line}", file=sys.stderr, flush=True)


def _watch(reader: int) -> None:
    """The thread: Python writes the number of each signal to the pipe when it arrives."""
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number in _NUMBERS:
                _act_on(number)
    os.close(reader)


def _act_on(number: int) -> None:
    global _asked
    with _LOCK:
        if _saving is not None and _asked is None:
            _asked = number
            return
        line = _ending
        if _saving is not None:
            line = f"stopped at once, without saving; continue with: {_saving}"
        # Without Python's buffers: the main thread may hold their locks.
        with contextlib.suppress(OSError):
            if os.isatty(_number(sys.stdout, 1)):  # a progress bar hides the cursor
                os.write(_number(sys.stdout, 1), b"\r\x1b[K\x1b[?25h")
        with contextlib.suppress(OSError):
            if not _written:
                text = f"error: {line}\n".encode(errors="backslashreplace")
                os.write(_number(sys.stderr, 2), text)
        clean_up()
        os._exit(128 + number)


def clean_up() -> None:
    """Call the functions `at_end`, before `os._exit`: it does not call those of `atexit`."""
    for function in at_end:
        with contextlib.suppress(Exception):
            function()


def _number(stream, usual: int) -> int:
    """The file descriptor of a stream."""
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):  # replaced or closed
        return usual


def _nothing(number, frame) -> None:
    pass


def _open_standard_streams() -> None:
    """Reopen streams that the shell closed (`>&-`): else the next file opened gets the output."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, this one
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115
