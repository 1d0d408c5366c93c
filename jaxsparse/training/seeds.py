"""Runs of several seeds, or of several rates, side by side on the devices of all processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsparse.machine import default_platform
from jaxsparse.training import processes

Tree = Any
_AXIS = "seeds"


class Placement(NamedTuple):
    """Which device computes which run.

    With n runs on d devices, each device computes n // d runs alone. The remaining n mod d runs are
    shared: they move from device to device in d turns, and each device computes 1/d of their steps.
    All devices then work for n/d times the time of one run, not for ceil(n/d) times. Five runs on
    two cores take a fifth less time.

    Attributes:
      runs: n.
      mesh: the devices; None: one program computes all runs.
      replicas: with `mesh` None, the devices that hold a copy of every array; None: one device.

    Examples:
      >>> placement = place_runs(5)
      >>> keys = placement.put(jax.random.split(jax.random.key(0), 5))
      >>> placement.to_host(placement.over_runs(jax.random.uniform, (0,))(keys)).shape
      (5,)

    Source: McNaughton, Scheduling with Deadlines and Loss Functions, 1959, Theorem 3.1. There a job
      is cut in two; equal parts let all devices hand their shared run on at the same time.
    """

    runs: int
    mesh: Mesh | None
    replicas: Mesh | None = None

    @property
    def devices(self) -> int:
        """d."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def platform(self) -> str:
        """The platform of the devices, as JAX names it."""
        return default_platform() if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def turns(self) -> int:
        """In how many turns the steps of the shared runs are computed; 1: no run is shared.

        Runs are shared on the CPU only. Elsewhere the runs of a device are vmapped, and one more
        costs little.
        """
        shared = self.runs % self.devices and self.platform == "cpu"
        return self.devices if shared else 1

    def order(self, turn: int = 0) -> np.ndarray:
        """The run at each place of the devices, [places]; an unused place repeats a run."""
        own, odd = divmod(self.runs, self.devices)
        places = np.arange(self.devices * own).reshape(self.devices, own)
        if odd:
            shared = (np.arange(self.devices) - turn) % self.devices
            shared = self.devices * own + np.minimum(shared, odd - 1)
            places = np.concatenate([places, shared[:, None]], 1)
        return places.ravel()

    def put(self, tree: Tree, turn: int = 0) -> Tree:
        """Move arrays [runs, ...] to the devices, placed as in that turn."""
        if self.mesh is None:
            return self.share(tree)
        placed = jax.tree.map(lambda x: x[self.order(turn)], tree)
        return processes.place(placed, NamedSharding(self.mesh, PartitionSpec(_AXIS)))

    def share(self, tree: Tree) -> Tree:
        """Copy `tree` to every device."""
        mesh = self.mesh or self.replicas
        sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        return processes.place(tree, sharding)

    def to_host(self, tree: Tree) -> Tree:
        """Arrays [places, ...] of the first turn as arrays [runs, ...] on the host."""
        places = np.unique(self.order(), return_index=True)[1]
        return jax.tree.map(lambda x: x[places], processes.to_host(tree))

    def stored(self, tree: Tree) -> Tree:
        """Arrays as a checkpoint holds them: without unused places."""
        return tree if self.mesh is None else self.to_host(tree)

    def stored_shapes(self, shapes: Tree) -> Tree:
        """The shapes and dtypes that `stored` returns for arrays of these shapes."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.runs, *x.shape[1:]), x.dtype), shapes
        )

    def over_runs(
        self, function: Callable, in_axes: Sequence[int | None], **jit_options: Any
    ) -> Callable:
        """`jax.jit(jax.vmap(function, in_axes))`, in the fastest form for the platform.

        On the CPU a device computes its runs one after the other: their matrices then stay in the
        cache, and batched products are slow.

        Args:
          function: the function of one run.
          in_axes: for each argument 0 (its leaves are [places, ...]) or None (all runs share it).
          **jit_options: for `jax.jit`.

        Returns:
          The jitted function of all runs; the leaves of its results are [places, ...].

        Examples:
          >>> placement = place_runs(3)
          >>> times = placement.over_runs(lambda x, y: x * y, (0, None))
          >>> placement.to_host(times(placement.put(np.arange(3)), 2)).tolist()
          [0, 2, 4]
        """
        return self._jit(self._each(function, in_axes), in_axes, jit_options)

    def over_steps(self, function: Callable, **jit_options: Any) -> Callable[..., Tree]:
        """A function that takes steps of all runs, an equal number on each device.

        Args:
          function: (state, by_run, shared, first, last) -> state, for one run: takes the steps
            first .. last - 1, int32. Cutting the steps in parts must not change the result.
          **jit_options: for `jax.jit`.

        Returns:
          (state, by_turn, shared, first, last) -> state with leaves [places, ...]; the given state
          is donated. by_turn: for each turn, `by_run` as `put` places it in that turn. The call
          does not wait for the devices.

        Examples:
          >>> placement = place_runs(3)
          >>> add = placement.over_steps(lambda x, y, z, first, last: x + (last - first) * y * z)
          >>> ones = [placement.put(jax.numpy.ones(3), turn) for turn in range(placement.turns)]
          >>> start = placement.put(jax.numpy.arange(3.0))
          >>> placement.to_host(add(start, ones, 10.0, 0, 4)).tolist()
          [40.0, 41.0, 42.0]
        """
        alike = self.turns == 1
        in_axes = (0, 0, None, None, None) if alike else (0, 0, None, 0, 0)
        each = self._each(function, in_axes)

        def turn(*args):
            state = each(*args)
            return state if alike else jax.tree.map(self._hand_on, state)

        program = self._jit(turn, in_axes, {"donate_argnums": 0, **jit_options})

        def take(state: Tree, by_turn: Sequence[Tree], shared: Tree, first: int, last: int) -> Tree:
            if alike:
                return program(state, by_turn[0], shared, np.int32(first), np.int32(last))
            for by_run, bounds in zip(by_turn, self.shares(first, last), strict=True):
                state = program(state, by_run, shared, *bounds)
            return state

        return take

    def shares(self, first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each turn, the first step of each place and the one after its last."""
        own, odd = divmod(self.runs, self.devices)
        device = np.arange(self.devices)
        taken = np.full((self.devices, own + 1), first, np.int32)
        for turn in range(self.devices):
            part = (last - first) * (turn + 1) // self.devices
            part -= (last - first) * turn // self.devices
            has_shared = (device - turn) % self.devices < odd
            then = taken.copy()
            then[has_shared, -1] += part
            # The other devices compute a run that is theirs alone meanwhile.
            then[~has_shared, 0] += part
            if turn == self.devices - 1:
                then[:, :-1] = last
            yield taken.ravel(), then.ravel()
            # A new array: JAX may not have read the old one yet.
            handed_on = np.roll(then[:, -1:], 1)
            taken = np.concatenate([then[:, :-1], handed_on], 1)

    def _each(self, function: Callable, in_axes: Sequence[int | None]) -> Callable:
        return _each_place(function, in_axes, one_by_one=self.platform == "cpu")

    def _hand_on(self, x: jax.Array) -> jax.Array:
        to_next = [(i, (i + 1) % self.devices) for i in range(self.devices)]
        return x.at[-1].set(jax.lax.ppermute(x[-1], _AXIS, to_next))

    def _jit(self, local: Callable, in_axes: Sequence[int | None], options: dict[str, Any]):
        if self.mesh is None:
            return jax.jit(local, **options)
        specs = tuple(PartitionSpec(_AXIS) if axis == 0 else PartitionSpec() for axis in in_axes)
        divided = jax.shard_map(
            local, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(_AXIS), check_vma=False
        )
        return jax.jit(divided, **options)


class SingleRun(Placement):
    """One run on one device; its arrays have no axis of runs, on the device or in checkpoints.

    Examples:
      >>> SingleRun(1, None).to_host(jax.numpy.ones(3)).shape
      (1, 3)
    """

    __slots__ = ()

    def to_host(self, tree: Tree) -> Tree:
        """Arrays on the host, with a leading axis of runs."""
        return jax.tree.map(lambda x: np.asarray(x)[None], tree)

    def stored_shapes(self, shapes: Tree) -> Tree:
        """The same shapes and dtypes."""
        return shapes

    def _each(self, function: Callable, in_axes: Sequence[int | None]) -> Callable:
        return function


def seed_keys(config: Any) -> jax.Array:
    """The keys of `config.seeds` runs, whose seeds count up from `config.seed`."""
    return jnp.stack([jax.random.key(config.seed + i) for i in range(config.seeds)])


def place_runs(runs: int) -> Placement:
    """Place runs on the devices, at most one device for each run, equally many of each process.

    Raises:
      ConfigError: there are more processes than runs.
    """
    devices = processes.devices(f"the {runs} runs (seeds)", lambda count: count <= runs)
    return Placement(runs, Mesh(np.array(devices), (_AXIS,)) if len(devices) > 1 else None)


def _each_place(function: Callable, in_axes: Sequence[int | None], one_by_one: bool) -> Callable:
    """`function` for every place of one device."""

    def local(*args):
        divided = tuple(arg for arg, axis in zip(args, in_axes, strict=True) if axis == 0)

        def one(place):
            own = iter(place)
            return function(
                *(next(own) if axis == 0 else arg for arg, axis in zip(args, in_axes, strict=True))
            )

        if jax.tree.leaves(divided)[0].shape[0] == 1:  # a loop of one would cost copies
            first = jax.tree.map(lambda x: x[0], divided)
            return jax.tree.map(lambda x: x[None], one(first))
        return jax.lax.map(one, divided) if one_by_one else jax.vmap(one)(divided)

    return local
