"""What the machine offers to a process."""

import contextlib
import os

_THREADS = ("PJRT_NPROC", "NPROC")  # the variables in which XLA looks, in order


def cores() -> int:
    """Cores that this process may use.

    Returns:
      Their number, at least 1.

    Example:
      >>> cores() <= os.cpu_count()
      True
    """
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_threads() -> int:
    """Threads among which XLA divides an operation on the CPU, before JAX is told of more devices.

    They decide the order of sums, and so the last bits of a result. XLA takes the number in
    $PJRT_NPROC or $NPROC, else that of the cores; with more devices than that, as many as these.

    Returns:
      Their number, at least 1.

    Example:
      >>> os.environ["PJRT_NPROC"] = "3"
      >>> cpu_threads()
      3

    Source: XLA, xla/pjrt/utils.cc, DefaultThreadPoolSize.
    """
    for name in _THREADS:
        with contextlib.suppress(KeyError, ValueError):
            return max(1, int(os.environ[name]))
    return cores()


def use_cpu_threads(count: int) -> bool:
    """Have XLA divide operations among `count` threads, whatever the number of cores.

    So a run ends with the bits it would have where it was begun. To be called before JAX is first
    used, and with no more devices than `count`. What the user has set himself stays.

    Args:
      count: as `cpu_threads` gave it there.

    Returns:
      Whether that is how it will be.

    Example:
      >>> use_cpu_threads(2)
      True
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
    """The platform that JAX computes on where nothing else is said, as JAX calls it.

    That of `jax.default_device` where it is set, which `jax.default_backend()` does not look at.

    Returns:
      "cpu", "gpu", "tpu" or another.

    Example:
      >>> with jax.default_device(jax.devices("cpu")[0]):
      ...     default_platform()
      'cpu'
    """
    import jax

    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def _jax_runs() -> bool:
    """Whether JAX has devices already: it then refuses to be told of another number."""
    import jax

    name = "jax_num_cpu_devices"
    chosen = getattr(jax.config, name)
    try:
        jax.config.update(name, 1 if chosen != 1 else 2)
    except RuntimeError:
        return True
    jax.config.update(name, chosen)
    return False
