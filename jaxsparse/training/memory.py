"""Check before a run starts that its arrays fit into the device's memory."""

import math
from collections.abc import Callable
from typing import Any

import jax

from jaxsparse import machine
from jaxsparse.training.errors import ConfigError

Tree = Any
# Used if the size of the memory is unknown: more than any device has.
_LARGEST = 2**62


def bytes_of(tree: Tree) -> int:
    """The size in bytes of a tree of arrays or of `jax.ShapeDtypeStruct`."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def device_memory() -> int | None:
    """The bytes that the first device has for arrays; None if unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    return machine.memory()


def check_fits(bound: int, size: Callable[[], int], what: str) -> None:
    """Raise ConfigError if a run needs more memory than the device has.

    Args:
      bound: an upper bound of `size()` in bytes. `size` is only called if the bound does not fit,
        because it traces a program, which takes part of a second.
      size: gives the needed bytes.
      what: names the arrays and the settings that their size depends on, for the message.

    Examples:
      >>> check_fits(2**70, lambda: 2**60, "the states of 1000000 seeds")
      Traceback (most recent call last):
      jaxsparse.training.errors.ConfigError: the states of 1000000 seeds must fit into memory: ...
    """
    memory = device_memory() or _LARGEST
    if bound <= memory:
        return
    # JAX cannot compute the size of arrays with more than 2^63 entries.
    needed = size() if bound < 2**63 else bound
    if needed > memory:
        # Whole numbers: floats would overflow.
        raise ConfigError(
            f"{what} must fit into memory: they need {needed // 2**30:,} GiB,"
            f" this machine has {memory // 2**30:,}"
        )
