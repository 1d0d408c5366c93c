"""Checkpoints that are whole: written atomically by orbax, each with a digest of its arrays."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxsparse.checks import leaves_by_name
from jaxsparse.training.errors import RunError, WriteError, one_line, writing

Tree = Any
KEPT = 3


class Checkpoints:
    """The newest states of a run, under one folder."""

    def __init__(self, path: Path):
        self.path = path

    def save(self, state: Tree, position: dict[str, int]) -> None:
        """Write a checkpoint, whole or not at all, and drop those beyond the newest three.

        Raises:
          WriteError: it could not be written; the earlier ones are as they were.
        """
        arrays = _named_arrays(state)
        record = {**position, "digest": _digest(arrays)}
        with writing(self.path), self._manager() as manager:
            self._check_room(sum(array.nbytes for array in arrays.values()))
            manager.save(
                max(manager.all_steps(), default=0) + 1,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), position=ocp.args.JsonSave(record)
                ),
            )

    def _check_room(self, size: int) -> None:
        # Asked beforehand: a disk that fills up under orbax ends some of its tasks with
        # exceptions that nobody collects.
        free = shutil.disk_usage(self.path.parent).free
        if free < 2 * size + 2**16:
            raise WriteError(
                f"cannot write to {self.path}: no space left on the device"
                f" ({free / 2**20:.1f} MiB free, a checkpoint wants {2 * size / 2**20:.1f})"
            )

    def restore(self, template: Tree, report: Callable[[str], None]) -> Tree | None:
        """The newest checkpoint that can be read whole, or None if there is none.

        One that cannot be read is reported and set aside under broken/; the one before is tried.

        Args:
          template: a state of the shapes and dtypes that are wanted.
          report: called with one line for each checkpoint set aside.

        Raises:
          RunError: there are checkpoints, but none can be read.
        """
        if not self.path.is_dir():
            return None
        with writing(self.path), self._manager() as manager:
            numbers = sorted(manager.all_steps(), reverse=True)
            for number in numbers:
                try:
                    return self._read(manager, number, template)
                except Exception as error:  # whatever a garbled file makes orbax raise
                    report(f"checkpoint {number} in {self.path} cannot be read: {one_line(error)}")
                    self._set_aside(number)
        if numbers:
            raise RunError(f"none of the checkpoints in {self.path} can be read")
        return None

    def _read(self, manager, number, template):
        wanted = jax.eval_shape(_raw_words, _by_path(template))
        restored = manager.restore(
            number,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(wanted), position=ocp.args.JsonRestore()
            ),
        )
        # In the order of the template's leaves: JAX sorts the names of a dict.
        arrays = {name: np.asarray(restored["state"][name]) for name in _by_path(template)}
        if _digest(arrays) != restored["position"]["digest"]:
            raise ValueError("its arrays do not match their digest")
        return _rebuild(template, arrays)

    def _set_aside(self, number: int) -> None:
        target = self.path.parent / "broken" / f"{number}-{time.time_ns()}"
        target.parent.mkdir(exist_ok=True)
        shutil.move(self.path / str(number), target)

    @contextmanager
    def _manager(self) -> Iterator[ocp.CheckpointManager]:
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        manager = ocp.CheckpointManager(self.path.resolve(), options=options)
        try:
            yield manager
        finally:
            manager.close()


def _named_arrays(state: Tree) -> dict[str, np.ndarray]:
    """The leaves of `state` on the host, under their paths."""
    return {name: np.asarray(x) for name, x in _raw_words(_by_path(state)).items()}


def _by_path(state: Tree) -> dict[str, Any]:
    return {name.replace("/", "."): leaf for name, leaf in leaves_by_name(state).items()}


def _raw_words(leaves: dict[str, Any]) -> dict[str, Any]:
    return {name: jax.random.key_data(x) if _is_key(x) else x for name, x in leaves.items()}


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _rebuild(template: Tree, arrays: dict[str, np.ndarray]) -> Tree:
    def device(leaf, array):
        if _is_key(leaf):
            return jax.random.wrap_key_data(array)
        return jax.numpy.asarray(array, leaf.dtype)

    leaves, tree = jax.tree.flatten(template)
    return jax.tree.unflatten(tree, map(device, leaves, arrays.values()))


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
