"""What the processes of one run tell each other. A single process sends nothing.

Every process calls these functions in the same order: each call waits for all of them.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import NamedSharding

from jaxsparse.training.errors import ConfigError, RunError

Tree = Any


def is_first() -> bool:
    """Whether this is process 0: it writes the run's folder and the console output."""
    return jax.process_index() == 0


# ---- decisions


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process."""
    if jax.process_count() == 1:
        return flag
    return bool(process_allgather(np.int32(flag)).any())


def number_from_first(number: int) -> int:
    """The `number` of process 0, an int32."""
    if jax.process_count() == 1:
        return number
    return int(process_allgather(np.int32(number))[0])


def from_first(make: Callable[[], Any]) -> Any:
    """The result of `make()` in process 0, a value that JSON can hold.

    If `make` raises in process 0, the other processes end with it.
    """
    if jax.process_count() == 1:
        return make()
    text = json.dumps(make()).encode() if is_first() else b""
    return json.loads(_bytes_from_first(np.frombuffer(text, np.uint8)).tobytes())


def check_same(values: dict[str, Any]) -> None:
    """Refuse a run whose processes have different values; RunError names the first difference.

    The values are those that JSON can hold.
    """
    if jax.process_count() == 1:
        return
    ours = json.loads(json.dumps(values))
    firsts = from_first(lambda: ours)
    different = [name for name in {**firsts, **ours} if firsts.get(name) != ours.get(name)]
    texts = [f"{n} {ours.get(n)!r} (process 0 has {firsts.get(n)!r})" for n in different[:1]]
    if any_process(bool(different)):
        where = f"process {jax.process_index()} has {texts[0]}" if texts else "another one differs"
        raise RunError(f"all processes of a run need the same settings and data: {where}")


# ---- arrays


def arrays_from_first(make: Callable[[], dict[str, np.ndarray] | None]) -> Any:
    """The arrays by name, or None, that `make()` returns in process 0, bit for bit."""
    if jax.process_count() == 1:
        return make()
    arrays = make() if is_first() else None
    kinds = from_first(lambda: None if arrays is None else _kinds(arrays))
    if kinds is None:
        return None
    received = {}
    for name, (dtype, shape) in kinds.items():
        raw = np.ascontiguousarray(arrays[name]).tobytes() if arrays else b""
        buffer = _bytes_from_first(np.frombuffer(raw, np.uint8)).tobytes()
        received[name] = np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)
    return received


def _kinds(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (str(x.dtype), list(x.shape)) for name, x in arrays.items()}


def to_host(tree: Tree) -> Tree:
    """The whole arrays on the host, whichever processes hold their parts."""

    def fetch(x):
        if getattr(x, "is_fully_addressable", True) or x.is_fully_replicated:
            return np.asarray(x)
        return process_allgather(x, tiled=True)

    return jax.tree.map(fetch, tree)


def place(tree: Tree, sharding: NamedSharding | None) -> Tree:
    """Move arrays that every process has to the devices of all processes.

    Unlike `jax.device_put`, it does not compare the arrays of the processes, which would send them.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def move(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                move(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(move, tree)


def _bytes_from_first(buffer: np.ndarray) -> np.ndarray:
    size = number_from_first(buffer.size)
    own = buffer if is_first() else np.zeros(size, np.uint8)
    return process_allgather(own)[0] if size else own


# ---- devices


def devices(what: str, fits: Callable[[int], bool]) -> list[Any]:
    """The devices of a run: as many as possible, and equally many of each process.

    Args:
      what: what is divided among them, for the message.
      fits: whether a number of devices can be used.

    Raises:
      ConfigError: there are too many processes to give each one work.
    """
    processes, local = jax.process_count(), jax.local_device_count()
    counts = (n * processes for n in range(local, 0, -1))
    count = next((n for n in counts if fits(n)), None)
    if count is None:
        raise ConfigError(f"{processes} processes cannot divide {what} among them evenly")
    by_process = [
        [d for d in jax.devices() if d.process_index == i][: count // processes]
        for i in range(processes)
    ]
    return [device for own in by_process for device in own]
