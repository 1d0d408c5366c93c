"""What every experiment's command line shares: flags, one-line errors, signals, the cache."""

import contextlib
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

Flags = TypeVar("Flags")


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one line on stderr and leave with `status`."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


def parse(flags: type[Flags], args: Sequence[str], default: Flags, prog: str) -> Flags:
    """Read `args` into the dataclass `flags`; what cannot be read is one line and status 2."""
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                flags,
                args=list(args),
                default=default,
                prog=prog,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code:
            fail(f"{_first_message(errors.getvalue())} ({prog} --help lists the flags)")
        raise


def _first_message(box: str) -> str:
    """The message in tyro's box, without the frame and the hints below its rule."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ").strip() for line in text.splitlines()[1:]]
    message: list[str] = []
    for line in lines:
        if line.strip("─-╰╯"):
            message.append(line)
        elif message:  # a rule; where the terminal has no box characters there is one above, too
            break
    return " ".join(message)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can cause, and warnings, into a line each on stderr; see `fail`."""
    from jaxsparse.data import DataError
    from jaxsparse.training import ConfigError, Diverged, RunError, Stopped, WriteError

    for name in ("absl", "asyncio"):  # what they log is said below, in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warnings()
            yield
    except (ConfigError, DataError, RunError) as error:
        fail(str(error), status=1 if isinstance(error, WriteError) else 2)
    except Diverged as error:
        fail(str(error), status=1)
    except Stopped as error:
        number, resume_command = _stop or (signal.SIGINT, "")
        fail(f"{error} and saved; continue with: {resume_command}", status=128 + number)
    except MemoryError:
        fail("out of memory", status=1)
    except BrokenPipeError:  # who reads has seen enough, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _one_line_warnings() -> Callable[..., None]:
    """What shows a warning as one line, and the cache of compiled programs' trouble once."""
    told = False

    def show(message, *unused):
        nonlocal told
        text = " ".join(str(message).split())
        if match := _CACHE_TROUBLE.match(text):
            if told:
                return
            told = True
            # JAX neither replaces nor removes an entry that a full disk or a kill cut short.
            text = (
                f"programs are compiled anew, for the cache cannot be used ({match[1]}); set"
                f" JAXSPARSE_CACHE to a folder with room, or delete {_compiled_programs()}"
            )
        print(f"warning: {text}", file=sys.stderr)

    return show


_CACHE_TROUBLE = re.compile(
    r"Error (?:reading|writing) persistent compilation cache entry for '[^']*': (.*)"
)


# The signal that asked the run to stop, and the command that continues it.
_stop: tuple[int, str] | None = None


def leave_on_signal() -> None:
    """Before there is anything to save: Ctrl-C and SIGTERM end the process with one line."""

    def leave(number, frame):
        fail("stopped before the first step", status=128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def stop_on_signal(resume_command: str) -> Callable[[], bool]:
    """From now on Ctrl-C and SIGTERM ask the run to save and stop; a second one ends it at once.

    Args:
      resume_command: what continues the run, for the closing line.

    Returns:
      A function that tells whether the run was asked to stop.
    """

    def ask(number, frame):
        global _stop
        if _stop is not None:
            os._exit(128 + number)
        _stop = (number, resume_command)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return lambda: _stop is not None


def use_compilation_cache() -> None:
    """Keep compiled programs under the user's cache folder, unless the user chose a place."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError):  # no folder to keep them in
            jax.config.update("jax_compilation_cache_dir", _compiled_programs())
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _compiled_programs() -> str:
    """The folder of compiled programs."""
    from jaxsparse.user_cache import code_dir

    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(code_dir("xla"))


def use_cores(count: int) -> None:
    """Make JAX see `count` CPU devices, among which a run divides its tasks.

    To be called before JAX is first used; later, and where the user has chosen a number himself,
    nothing changes.
    """
    import jax

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices == -1 and not chosen:  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError):  # JAX is running already
            jax.config.update("jax_num_cpu_devices", count)


def use_all_cores() -> None:
    """Make JAX see one CPU device for each core this process may use: seeds go side by side."""
    use_cores(len(os.sched_getaffinity(0)))


def differing(got: dict[str, Any], wanted: dict[str, Any]) -> str:
    """`name: got, run has wanted` for every entry that differs."""
    names = [name for name in {**wanted, **got} if got.get(name) != wanted.get(name)]
    return ", ".join(f"{n} {got.get(n)!r} (the run has {wanted.get(n)!r})" for n in names)
