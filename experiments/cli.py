"""What every experiment's command line shares: flags, one-line errors, signals, the cache."""

import contextlib
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
    """`text` on one line; spaces within a line stay: they may be a path's."""
    return _LINE_BREAKS.sub(" ", text.strip())


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one line on stderr and leave with `status`."""
    signals.last_line(one_line(message))
    raise SystemExit(status)


def quoted(word: object) -> str:
    """A word of a command as the shell wants it: it can be pasted whatever it holds."""
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
    """A command that can be pasted."""
    return " ".join([prog, *map(quoted, args)])


# ---- flags


def parse(flags: type[Flags], args: Sequence[str], default: Flags, prog: str) -> Flags:
    """Read `args` into the dataclass `flags`; what cannot be read is one line and status 2."""
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
    """The names of the flags in `args`, as their fields are called; `no_` before a denied one."""
    flags = [word for word in args if word.startswith("--")]
    return [word[2:].split("=", 1)[0].replace("-", "_") for word in flags]


def last_value(args: Sequence[str], name: str) -> str | None:
    """The value that the flag called `name` has in `args`, the last one where it has several."""
    flag, value = f"--{name.replace('_', '-')}", None
    for word, following in zip(args, [*args[1:], None], strict=False):
        own, equals, rest = word.partition("=")
        if own.replace("_", "-") == flag:
            value = rest if equals else following
    return value


def _check_words(args: Sequence[str]) -> None:
    """Refuse what no flag takes, before it is taken for something else."""
    for before, word in zip(["", *args], args, strict=False):
        try:
            word.encode()
        except UnicodeEncodeError:
            fail(f"arguments must be UTF-8, got {word!a}")
        if not word:
            fail(f"{before or 'an argument'} wants a value, got ''")
        if word.startswith("--") and word.endswith("=") and word.count("=") == 1:
            fail(f"{word[:-1]} wants a value, got ''")
        if word == "--":
            fail(f"{before if before.startswith('--') else 'a flag'} wants a value, got '--'")


_WHOLE = re.compile(r"[+-]?[0-9]+")
# What is not finite the configurations refuse, each in its own words.
_DECIMAL = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf(inity)?)", re.IGNORECASE
)


def _numbers() -> "ConstructorRegistry":
    """How numbers are read: as they are printed, not in all the ways that Python knows."""
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveConstructorSpec,
        PrimitiveTypeInfo,
    )

    def whole(words: list[str]) -> int:
        (word,) = words
        # Longer ones Python itself refuses to read.
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
    """The message in tyro's box, without the frame and the hints below its rule."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ").strip() for line in text.splitlines()[1:]]
    message: list[str] = []
    for line in lines:
        if line.strip("─-╰╯"):
            message.append(line)
        elif message:  # a rule; where the terminal has no box characters there is one above, too
            break
    said = re.sub(r"^Error parsing (config: )?", "", " ".join(message))
    return _NO_TYPE.sub(r"must be \1, got \2", said)


_NO_TYPE = re.compile(r"no type matching (\S+) could be instantiated from \[(.*)\]\.?$")


def _shown(word: str) -> str:
    """A word in a message: what does not end would hide the rest."""
    return repr(word if len(word) <= 80 else f"{word[:80]}...")


# ---- what a command prints, and how it ends


class OutputError(Exception):
    """The standard output cannot be written; the message is one line."""


def say(text: str) -> None:
    """Print lines on stdout, at once.

    Raises:
      OutputError: it cannot be written.
      BrokenPipeError: nobody reads it any more.
    """
    with writing_output():
        print(text, flush=True)


@contextlib.contextmanager
def writing_output() -> Iterator[None]:
    """Tell trouble with the standard output from that with other files; see `say`."""
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
    """A whole command: its signals, and its errors in one line each."""
    # In an interactive session Ctrl-C must not end the session; there it raises, as always.
    own = contextlib.nullcontext() if hasattr(sys, "ps1") else signals.handled()
    with own:
        signals.leave("stopped before the first step")
        if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what it cannot say
            sys.stdout.reconfigure(errors="backslashreplace")
        with one_line_errors():
            yield
            with writing_output():
                sys.stdout.flush()


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can cause, and warnings, into a line each on stderr; see `fail`."""
    # What these log is said below, in one line.
    for name in ("absl", "asyncio", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.basicConfig(format="%(message)s")  # else a library sets a longer one
    try:
        errors = _our_errors()
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warnings()
            yield
    except OutputError as error:
        _drop_output()
        fail(str(error), status=1)
    except BrokenPipeError:  # who reads has seen enough, as with `| head`
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
    """Import JAX; where it cannot be, one line says why."""
    try:
        import jax  # noqa: F401
    except Exception as error:  # it reads its settings from the environment
        fail(f"JAX does not start: {error}")


def _our_errors() -> dict[type[Exception], int]:
    """The errors whose message is for the user, and the exit status of each; the first fits."""
    import_jax()
    from jaxsparse.data import DataError
    from jaxsparse.training import ConfigError, Diverged, RunError, WriteError

    return {WriteError: 1, Diverged: 1, ConfigError: 2, DataError: 2, RunError: 2}


def _out_of_memory(error: Exception) -> bool:
    """Whether XLA says so, which has no exception of its own for it."""
    jax = sys.modules.get("jax")
    return (
        jax is not None
        and isinstance(error, jax.errors.JaxRuntimeError)
        and "RESOURCE_EXHAUSTED" in str(error)
    )


def _drop_output() -> None:
    """Let what is still to be printed go nowhere: Python would complain of it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line_warnings() -> Callable[..., None]:
    """What shows a warning as one line, and the cache of compiled programs' trouble once."""
    told = False

    def show(message, *unused):
        nonlocal told
        text = one_line(str(message))
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


@contextlib.contextmanager
def saving_on_signal(resume_command: str) -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C and SIGTERM ask the run to save and stop; a second one ends it at once.

    Args:
      resume_command: what continues the run, for the closing line.

    Returns:
      A context with the function that tells whether the run was asked to stop.
    """
    from jaxsparse.training import Stopped

    said = f"saved; continue with: {resume_command}"
    try:
        with signals.saving(resume_command) as should_stop:
            yield should_stop
    except Stopped as stopped:
        fail(f"{stopped} and {said}", status=128 + (signals.asked() or signal.SIGINT))
    if (number := signals.asked()) is not None:  # after the run had last looked
        fail(f"stopped at the end of the run and {said}", status=128 + number)


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
    """Make JAX see up to `count` CPU devices, among which a run divides its tasks.

    No more than XLA has threads, whose number decides a run's bits. To be called before JAX is
    first used; later, and where the user has chosen a number himself, nothing changes.
    """
    import jax

    from jaxsparse.machine import cpu_threads

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices == -1 and not chosen:  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError):  # JAX is running already
            jax.config.update("jax_num_cpu_devices", min(count, cpu_threads()))


def use_all_cores() -> None:
    """Make JAX see one CPU device for each core this process may use: seeds go side by side."""
    from jaxsparse.machine import cores

    use_cores(cores())


def start_backend() -> None:
    """Start JAX's devices, and refuse a platform that is not there, in one line."""
    import jax

    try:
        jax.devices()
    except Exception as error:  # an AssertionError without a word, where no plugin is installed
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        fail(f"JAX finds no device with JAX_PLATFORMS={asked!r}: {error or 'not installed here'}")


def differing(got: dict[str, Any], wanted: dict[str, Any]) -> str:
    """`name: got, run has wanted` for every entry that differs."""
    names = [name for name in {**wanted, **got} if got.get(name) != wanted.get(name)]
    return ", ".join(f"{n} {got.get(n)!r} (the run has {wanted.get(n)!r})" for n in names)
