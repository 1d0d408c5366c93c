"""Runs of several seeds, or of several rates, in one program."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "seeds"


def seed_mesh(runs: int) -> Mesh | None:
    """This machine's devices that runs can be divided among; None where one device serves all."""
    devices = jax.local_devices()[:runs]
    return Mesh(np.array(devices), (_AXIS,)) if len(devices) > 1 else None


def places(runs: int, mesh: Mesh | None) -> list[int]:
    """The run at each place, the same number on each device; those beyond the last repeat it."""
    size = 1 if mesh is None else mesh.size
    return [min(place, runs - 1) for place in range(-(-runs // size) * size)]


def put(tree: Any, mesh: Mesh | None, divided: bool) -> Any:
    """`tree` on every device, or with its leading axis of runs divided among them."""
    if mesh is None:
        return jax.device_put(tree)
    return jax.device_put(
        tree, NamedSharding(mesh, PartitionSpec(_AXIS) if divided else PartitionSpec())
    )


def over_runs(
    function: Callable,
    in_axes: Sequence[int | None],
    mesh: Mesh | None,
    count: int | None = None,
    **jit_options: Any,
) -> Callable:
    """`jax.jit(jax.vmap(function, in_axes))`, in the form that is fastest where it runs.

    Runs are divided among the devices of `mesh`. On the CPU those of one device go one after the
    other: their matrices stay in its cache, and batched products are slow there.

    Args:
      function: of one run.
      in_axes: for each argument 0 (it leads with the axis of runs) or None (shared by all).
      mesh: what `seed_mesh` returned.
      count: the number of runs; the places beyond it (`places`) are passed over on the CPU, which
        leaves their core to the others. None: all places are runs.
      **jit_options: for `jax.jit`.

    Returns:
      The function of all runs, jitted; its results lead with the axis of runs.

    Example:
      >>> double = over_runs(lambda x, y: x * y, (0, None), None)
      >>> double(jax.numpy.arange(3), 2).tolist()
      [0, 2, 4]
    """

    def local(*args):
        runs = tuple(arg for arg, axis in zip(args, in_axes, strict=True) if axis == 0)
        places = jax.tree.leaves(runs)[0].shape[0]

        def one(run):
            own = iter(run)
            return function(
                *(next(own) if axis == 0 else arg for arg, axis in zip(args, in_axes, strict=True))
            )

        def one_if_used(place_and_run):
            place, run = place_and_run
            shapes = jax.eval_shape(one, run)
            empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return jax.lax.cond(place < count, one, lambda run: empty, run)

        if places == 1:  # a loop of one would cost copies
            first = jax.tree.map(lambda x: x[0], runs)
            return jax.tree.map(lambda x: x[None], one(first))
        if jax.default_backend() != "cpu":
            return jax.vmap(one)(runs)
        if mesh is None or count is None or count == places * mesh.size:
            return jax.lax.map(one, runs)
        first = jax.lax.axis_index(_AXIS) * places
        return jax.lax.map(one_if_used, (first + jnp.arange(places), runs))

    if mesh is None:
        return jax.jit(local, **jit_options)
    specs = tuple(PartitionSpec(_AXIS) if axis == 0 else PartitionSpec() for axis in in_axes)
    divided = jax.shard_map(
        local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(_AXIS), check_vma=False
    )
    return jax.jit(divided, **jit_options)
