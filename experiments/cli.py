"""Shared by all command lines: flags, one-line errors, signals, the compilation cache."""

import contextlib
import importlib.util
import io
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from experiments import signals

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

Flags = TypeVar("Flags")

_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def one_line(text: str) -> str:
    """`text` on one line. Spaces within a line are kept: they may belong to a path."""
    return _LINE_BREAKS.sub(" ", text.strip())


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one line on stderr and leave with `status`."""
    signals.last_line(one_line(message))
    raise SystemExit(status)


def need(modules: Sequence[str], what: str, title: str, extra: str) -> None:
    """End with one line unless the modules that `what` needs are installed.

    `title` is the name of the package in the message, `extra` the extra that installs it.
    """
    if any(importlib.util.find_spec(module) is None for module in modules):
        fail(f"{what} needs {title}; install it with: pip install -e '.[{extra}]'")


def need_optuna(what: str) -> None:
    """End with one line if Optuna, which `what` needs, is not installed."""
    need(["optuna"], what, "Optuna", "sweep")


def quoted(word: object) -> str:
    """A word quoted for the shell, even if it holds unprintable characters."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))


def command_line(prog: str, args: Sequence[object]) -> str:
    """A command that can be pasted into a shell."""
    return " ".join([prog, *map(quoted, args)])


# ---- flags


def parse(flags: type[Flags], args: Sequence[str], default: Flags, prog: str) -> Flags:
    """Parse `args` into the dataclass `flags`; an error is one line and exit status 2."""
    import tyro

    _check_words(args)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), writing_output():
            return tyro.cli(
                flags,
                args=list(args),
                default=default,
                prog=prog,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_numbers(),
            )
    except SystemExit as stop:
        if stop.code:
            fail(f"{_first_message(errors.getvalue())} ({prog} --help lists the flags)")
        raise


def given(args: Sequence[str]) -> list[str]:
    """The names of the flags in `args`, written as fields: `--no-run` is `no_run`."""
    flags = [word for word in args if word.startswith("--")]
    return [word[2:].split("=", 1)[0].replace("-", "_") for word in flags]


def last_value(args: Sequence[str], name: str) -> str | None:
    """The value of the flag `name` in `args`; the last one if it is given more than once."""
    flag, value = f"--{name.replace('_', '-')}", None
    for word, following in zip(args, [*args[1:], None], strict=False):
        before, equals, rest = word.partition("=")
        if before.replace("_", "-") == flag:
            value = rest if equals else following
    return value


def _check_words(args: Sequence[str]) -> None:
    """Refuse words that no flag accepts, before tyro misreads them."""
    for before, word in zip(["", *args], args, strict=False):
        try:
            word.encode()
        except UnicodeEncodeError:
            fail(f"arguments must be UTF-8, got {word!a}")
        if not word:
            fail(f"{before or 'an argument'} needs a value, got ''")
        if word.startswith("--") and word.endswith("=") and word.count("=") == 1:
            fail(f"{word[:-1]} needs a value, got ''")
        if word == "--":
            fail(f"{before if before.startswith('--') else 'a flag'} needs a value, got '--'")


_WHOLE = re.compile(r"[+-]?[0-9]+")
# "nan" and "inf" are numbers here; the configurations refuse them with their own messages.
_DECIMAL = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf(inity)?)", re.IGNORECASE
)


def _numbers() -> "ConstructorRegistry":
    """Parsers of numbers that are stricter than Python's: no underscores, ASCII digits only."""
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveConstructorSpec,
        PrimitiveTypeInfo,
    )

    def whole(words: list[str]) -> int:
        (word,) = words
        # The length is checked first: Python refuses to parse very long numbers.
        if not _WHOLE.fullmatch(word) or len(word) > 20 or abs(int(word)) >= 2**31:
            raise ValueError(f"must be a whole number below 2^31, got {_shown(word)}")
        return int(word)

    def decimal(words: list[str]) -> float:
        (word,) = words
        if not _DECIMAL.fullmatch(word):
            raise ValueError(f"must be a number, got {_shown(word)}")
        return float(word)

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type not in (int, float):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=info.type.__name__.upper(),
            instance_from_str=whole if info.type is int else decimal,
            is_instance=lambda value: isinstance(value, (int, info.type)),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _first_message(box: str) -> str:
    """The message in tyro's box, without the frame and the hints below the horizontal rule."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ").strip() for line in text.splitlines()[1:]]
    message: list[str] = []
    for line in lines:
        if line.strip("─-╰╯"):
            message.append(line)
        elif message:  # a rule; without box characters there is also one above the message
            break
    line = re.sub(r"^Error parsing (config: )?", "", " ".join(message))
    return _NO_TYPE.sub(r"must be \1, got \2", line)


_NO_TYPE = re.compile(r"no type matching (\S+) could be instantiated from \[(.*)\]\.?$")


def _shown(word: str) -> str:
    """A word quoted for a message, cut if it is long."""
    return repr(word if len(word) <= 80 else f"{word[:80]}...")


# ---- output and exit


class OutputError(Exception):
    """Writing to the standard output failed; the message is one line."""


def say(text: str) -> None:
    """Print and flush; raises `OutputError`, or `BrokenPipeError` if the reader is gone."""
    with writing_output():
        print(text, flush=True)


@contextlib.contextmanager
def writing_output() -> Iterator[None]:
    """Raise a failed write to stdout as `OutputError`, unlike errors of other files."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write to the standard output: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def command() -> Iterator[None]:
    """Run a whole command: handle signals, print each error as one line."""
    # In an interactive session Ctrl-C raises KeyboardInterrupt as usual: Python must not end.
    handling = contextlib.nullcontext() if hasattr(sys, "ps1") else signals.handled()
    with handling:
        signals.leave("stopped before the first step")
        if isinstance(sys.stdout, io.TextIOWrapper):  # file names may not be encodable
            sys.stdout.reconfigure(errors="backslashreplace")
        with one_line_errors():
            yield
            with writing_output():
                sys.stdout.flush()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print warnings, and errors that a user can cause, as one line each on stderr."""
    # What these log is reported below, in one line.
    for name in ("absl", "asyncio", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.basicConfig(format="%(message)s")  # set first, or a library sets a longer one
    try:
        errors = our_errors()
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warnings()
            yield
    except OutputError as error:
        _drop_output()
        fail(str(error), status=1)
    except BrokenPipeError:  # the reader has stopped, as `| head` does
        _drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except MemoryError:
        fail("out of memory", status=1)
    except KeyboardInterrupt:
        fail("stopped", status=128 + signal.SIGINT)
    except Exception as error:
        if _out_of_memory(error):
            fail(f"out of memory: {error}", status=1)
        status = next((status for kind, status in errors.items() if isinstance(error, kind)), None)
        if status is None:
            raise
        fail(str(error), status)


def import_jax() -> None:
    """Import JAX; a failure is one line."""
    try:
        import jax  # noqa: F401
    except Exception as error:  # a bad environment variable, for example
        fail(f"JAX cannot be imported: {error}")


def our_errors() -> dict[type[Exception], int]:
    """Exit statuses of the errors whose message is for the user; the first match counts."""
    import_jax()
    from jaxsparse.data import DataError
    from jaxsparse.training import ConfigError, Diverged, RunError, WriteError

    return {WriteError: 1, Diverged: 1, ConfigError: 2, DataError: 2, RunError: 2}


def _out_of_memory(error: Exception) -> bool:
    """Whether XLA ran out of memory; it has no exception class for that."""
    jax = sys.modules.get("jax")
    return (
        jax is not None
        and isinstance(error, jax.errors.JaxRuntimeError)
        and "RESOURCE_EXHAUSTED" in str(error)
    )


def _drop_output() -> None:
    """Discard buffered output: Python would report an error when it flushes it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line_warnings() -> Callable[..., None]:
    """A `warnings.showwarning` that prints one line, and errors of the cache only once."""
    shown = False

    def show(message, *unused):
        nonlocal shown
        text = one_line(str(message))
        if match := _CACHE_TROUBLE.match(text):
            if shown:
                return
            shown = True
            # JAX keeps cache entries that a full disk or a kill has truncated.
            text = (
                f"programs are compiled again, as the cache cannot be used ({match[1]}); set"
                f" JAXSPARSE_CACHE to a folder on another disk, or delete {_compiled_programs()}"
            )
        print(f"warning: {text}", file=sys.stderr)

    return show


_CACHE_TROUBLE = re.compile(
    r"Error (?:reading|writing) persistent compilation cache entry for '[^']*': (.*)"
)


@contextlib.contextmanager
def saving_on_signal(resume_command: str) -> Iterator[Callable[[], bool]]:
    """Let a signal ask the run to save and stop, and end the command; see `signals.saving`."""
    from jaxsparse.training import Stopped

    ending = f"saved; continue with: {resume_command}"
    try:
        with signals.saving(resume_command) as should_stop:
            yield should_stop
    except Stopped as stopped:
        fail(f"{stopped} and {ending}", status=128 + (signals.asked() or signal.SIGINT))
    if (number := signals.asked()) is not None:  # it came after the run's last check
        fail(f"stopped at the end of the run and {ending}", status=128 + number)


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless the environment names one."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError):  # there is no folder for them
            jax.config.update("jax_compilation_cache_dir", _compiled_programs())
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _compiled_programs() -> str:
    """The folder of compiled programs."""
    from jaxsparse.user_cache import code_dir

    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(code_dir("xla"))


def use_cores(count: int) -> None:
    """Make JAX see up to `count` CPU devices, to divide tasks or seeds among them.

    There are at most as many devices as XLA threads, whose number decides the last bits of a run.
    Call it before JAX is first used. It has no effect later, or if the user has set the number.
    """
    import jax

    from jaxsparse.machine import cpu_threads

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices == -1 and not chosen:  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError):  # JAX is running already
            jax.config.update("jax_num_cpu_devices", min(count, cpu_threads()))


def use_all_cores() -> None:
    """Make JAX see one CPU device for each core that this process may use."""
    from jaxsparse.machine import cores

    use_cores(cores())


def start_backend() -> None:
    """Start JAX's devices; a platform that is not available is one line."""
    import jax

    try:
        jax.devices()
    except Exception as error:  # without a plugin: an AssertionError with no message
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        fail(f"JAX finds no device with JAX_PLATFORMS={asked!r}: {error or 'not installed here'}")


def differing(got: dict[str, Any], wanted: dict[str, Any]) -> str:
    """`name got (the run has wanted)` for every entry that differs."""
    names = [name for name in {**wanted, **got} if got.get(name) != wanted.get(name)]
    return ", ".join(f"{n} {got.get(n)!r} (the run has {wanted.get(n)!r})" for n in names)
