"""What the machine offers to a process."""

import contextlib
import os


def cpu_threads() -> int:
    """Threads among which XLA's CPU client divides an operation: it decides the order of sums.

    As XLA counts them: $PJRT_NPROC or $NPROC where one is a whole number, else the cores that this
    process may use.

    Returns:
      Their number, at least 1.

    Example:
      >>> os.environ["PJRT_NPROC"] = "3"
      >>> cpu_threads()
      3

    Source: XLA, xla/pjrt/utils.cc, DefaultThreadPoolSize.
    """
    for name in ("PJRT_NPROC", "NPROC"):
        with contextlib.suppress(KeyError, ValueError):
            return max(1, int(os.environ[name]))
    return cores()


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
