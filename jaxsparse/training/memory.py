"""What a run keeps in memory: refused beforehand where the device cannot hold it."""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from jaxsparse.training.errors import ConfigError

Tree = Any
# More than any device has, where the system does not say what it has.
_LARGEST = 2**62
# Where a group of processes may have less than the machine: Linux' control groups, new and old.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def bytes_of(tree: Tree) -> int:
    """The bytes of a tree of arrays, or of what `jax.eval_shape` gives for them.

    Example:
      >>> bytes_of({"x": jax.ShapeDtypeStruct((3, 2), jax.numpy.float32)})
      24
    """
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def device_memory() -> int | None:
    """The bytes that the first device has for arrays, None where the system does not say."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    sizes = []
    with suppress(OSError, ValueError, AttributeError):  # not on every system
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in map(Path, _LIMITS):
        with suppress(OSError, ValueError):  # "max" is none
            sizes.append(int(limit.read_text()))
    return min(sizes, default=None)


def check_fits(bound: int, size: Callable[[], int], what: str) -> None:
    """Raise ConfigError where the device's memory is smaller than what a run keeps there.

    Args:
      bound: bytes, no fewer than `size()`: where these fit, or are beyond all memory, it is not
        called.
      size: gives the bytes; tracing a program for it takes part of a second.
      what: what they hold, with the settings that they grow with.

    Raises:
      ConfigError: it cannot hold them.

    Example:
      >>> check_fits(2**70, lambda: 2**60, "the states of 1000000 seeds")
      Traceback (most recent call last):
      jaxsparse.training.errors.ConfigError: the states of 1000000 seeds must fit into memory: ...
    """
    memory = device_memory() or _LARGEST
    if bound <= memory:
        return
    # JAX cannot say how large arrays of more than 2^63 entries are.
    needed = size() if bound < 2**63 else bound
    if needed > memory:
        # Whole numbers: floats would overflow.
        raise ConfigError(
            f"{what} must fit into memory: they need {needed // 2**30:,} GiB,"
            f" this machine has {memory // 2**30:,}"
        )
