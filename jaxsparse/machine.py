"""The cores, threads, memory and processes of this machine, and JAX's default platform."""

import contextlib
import os
from pathlib import Path

_THREADS = ("PJRT_NPROC", "NPROC")  # the variables that XLA reads, in order


# Memory limits of Linux control groups (versions 2 and 1), which may be below the machine's memory.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory() -> int | None:
    """The bytes of memory that this process may use; None if unknown."""
    sizes = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # not on every system
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in map(Path, _LIMITS):
        with contextlib.suppress(OSError, ValueError):  # "max" means no limit
            sizes.append(int(limit.read_text()))
    return min(sizes, default=None)


def is_running(process: int) -> bool:
    """Whether a process with this number runs here."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_threads() -> int:
    """The number of threads that XLA divides an operation among on the CPU.

    It decides the order of sums, and so the last bits of a result. XLA uses $PJRT_NPROC or $NPROC,
    else the number of cores, and at least one thread per JAX device (not counted here).

    Source: XLA, xla/pjrt/utils.cc, DefaultThreadPoolSize.
    """
    for name in _THREADS:
        with contextlib.suppress(KeyError, ValueError):
            return max(1, int(os.environ[name]))
    return cores()


def use_cpu_threads(count: int) -> bool:
    """Make XLA divide operations among `count` threads, for any number of cores; True on success.

    A resumed run uses this to get the same bits as on the machine where it was started. Call it
    before JAX is first used, with at most `count` devices. It does not overwrite a number that the
    user has set.
    """
    if cpu_threads() == count:
        return True
    if any(name in os.environ for name in _THREADS):
        return False
    if _jax_runs():
        return False
    os.environ["PJRT_NPROC"] = str(count)
    return True


def default_platform() -> str:
    """The platform of JAX's default device: "cpu", "gpu", "tpu" or another.

    Unlike `jax.default_backend()`, this respects `jax.default_device`.
    """
    import jax

    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def _jax_runs() -> bool:
    """True if JAX has already created its devices: their number can then no longer be changed."""
    import jax

    name = "jax_num_cpu_devices"
    chosen = getattr(jax.config, name)
    try:
        jax.config.update(name, 1 if chosen != 1 else 2)
    except RuntimeError:
        return True
    jax.config.update(name, chosen)
    return False
