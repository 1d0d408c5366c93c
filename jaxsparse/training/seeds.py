"""Runs of several seeds, or of several rates, side by side on this machine's devices."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = Any
_AXIS = "seeds"


class Placement(NamedTuple):
    """Which device computes which run.

    Each of d devices has n // d runs of its own. The n mod d odd ones lie in a last place on each
    device, and are handed round in d turns: a device takes 1/d of the steps of each that reaches
    it. So all devices are busy alike, for n/d times one run, not for that number rounded up.

    Attributes:
      runs: n.
      mesh: the devices; None where all runs go together.
      replicas: where they do, the devices that each have a copy of every array; None for one.

    Example:
      >>> placement = place_runs(5)
      >>> keys = placement.put(jax.random.split(jax.random.key(0), 5))
      >>> placement.to_host(placement.over_runs(jax.random.uniform, (0,))(keys)).shape
      (5,)

    Source: McNaughton, Scheduling with Deadlines and Loss Functions, 1959, Theorem 3.1, which cuts
      a job in two; parts of equal length let it be handed on while no device waits.
    """

    runs: int
    mesh: Mesh | None
    replicas: Mesh | None = None

    @property
    def devices(self) -> int:
        """d."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def turns(self) -> int:
        """How often the odd runs are handed on until all their steps are taken; 1: not at all.

        Only on the CPU: elsewhere the runs of a device go side by side, for no more time than one.
        """
        shared = self.runs % self.devices and jax.default_backend() == "cpu"
        return self.devices if shared else 1

    def order(self, turn: int = 0) -> np.ndarray:
        """The run at each place, [places]; those that lie idle repeat one."""
        own, odd = divmod(self.runs, self.devices)
        places = np.arange(self.devices * own).reshape(self.devices, own)
        if odd:
            visitor = (np.arange(self.devices) - turn) % self.devices
            visitor = self.devices * own + np.minimum(visitor, odd - 1)
            places = np.concatenate([places, visitor[:, None]], 1)
        return places.ravel()

    def put(self, tree: Tree, turn: int = 0) -> Tree:
        """Arrays that lead with the axis of runs, on the devices as they lie in that turn."""
        if self.mesh is None:
            return self.share(tree)
        placed = jax.tree.map(lambda x: x[self.order(turn)], tree)
        return jax.device_put(placed, NamedSharding(self.mesh, PartitionSpec(_AXIS)))

    def share(self, tree: Tree) -> Tree:
        """`tree` on every device."""
        mesh = self.mesh or self.replicas
        return jax.device_put(tree, mesh and NamedSharding(mesh, PartitionSpec()))

    def to_host(self, tree: Tree) -> Tree:
        """Arrays as they lie in the first turn, on the host, led by the axis of runs again."""
        places = np.unique(self.order(), return_index=True)[1]
        return jax.tree.map(lambda x: np.asarray(x)[places], tree)

    def stored(self, tree: Tree) -> Tree:
        """Arrays as a checkpoint holds them: without the places that lie idle."""
        return tree if self.mesh is None else self.to_host(tree)

    def stored_shapes(self, shapes: Tree) -> Tree:
        """The shapes and dtypes that `stored` gives of arrays of these."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.runs, *x.shape[1:]), x.dtype), shapes
        )

    def over_runs(
        self, function: Callable, in_axes: Sequence[int | None], **jit_options: Any
    ) -> Callable:
        """`jax.jit(jax.vmap(function, in_axes))`, in the form that is fastest where it runs.

        On the CPU the runs of one device go one after the other: their matrices stay in its cache,
        and batched products are slow there.

        Args:
          function: of one run.
          in_axes: for each argument 0 (it leads with the axis of places) or None (shared by all).
          **jit_options: for `jax.jit`.

        Returns:
          The function of all runs, jitted; its results lead with the axis of places.

        Example:
          >>> placement = place_runs(3)
          >>> times = placement.over_runs(lambda x, y: x * y, (0, None))
          >>> placement.to_host(times(placement.put(np.arange(3)), 2)).tolist()
          [0, 2, 4]
        """
        return self._jit(self._each(function, in_axes), in_axes, jit_options)

    def over_steps(self, function: Callable, **jit_options: Any) -> Callable[..., Tree]:
        """The function that takes steps of all runs, each device an equal share of them.

        Args:
          function: (state, by_run, shared, first, last) -> state, of one run: takes the steps from
            `first` to before `last`, int32. Steps taken in parts must be the same steps.
          **jit_options: for `jax.jit`.

        Returns:
          (state, by_turn, shared, first, last) -> state, led by the axis of places; it uses up the
          state it is given. by_turn: for each turn, `by_run` as `put` places it in that turn.
          It does not wait for the devices.

        Example:
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
        """For each turn the steps that each place takes, from and to before, int32 [places]."""
        own, odd = divmod(self.runs, self.devices)
        device = np.arange(self.devices)
        taken = np.full((self.devices, own + 1), first, np.int32)
        for turn in range(self.devices):
            part = (last - first) * (turn + 1) // self.devices
            part -= (last - first) * turn // self.devices
            visited = (device - turn) % self.devices < odd
            then = taken.copy()
            then[visited, -1] += part
            # The others go on with a run of their own for as long, and with all in the end.
            then[~visited, 0] += part
            if turn == self.devices - 1:
                then[:, :-1] = last
            yield taken.ravel(), then.ravel()
            # A new array: JAX may not have read the other yet.
            handed_on = np.roll(then[:, -1:], 1)
            taken = np.concatenate([then[:, :-1], handed_on], 1)

    def _each(self, function: Callable, in_axes: Sequence[int | None]) -> Callable:
        return _each_place(function, in_axes)

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
    """One run, on one device, whose arrays have no axis of runs there or in checkpoints.

    Example:
      >>> SingleRun(1, None).to_host(jax.numpy.ones(3)).shape
      (1, 3)
    """

    __slots__ = ()

    def to_host(self, tree: Tree) -> Tree:
        """Arrays on the host, led by an axis of runs."""
        return jax.tree.map(lambda x: np.asarray(x)[None], tree)

    def stored_shapes(self, shapes: Tree) -> Tree:
        """As they are."""
        return shapes

    def _each(self, function: Callable, in_axes: Sequence[int | None]) -> Callable:
        return function


def place_runs(runs: int) -> Placement:
    """Runs on all of this machine's devices, or on as many as there are runs."""
    devices = jax.local_devices()[:runs]
    return Placement(runs, Mesh(np.array(devices), (_AXIS,)) if len(devices) > 1 else None)


def _each_place(function: Callable, in_axes: Sequence[int | None]) -> Callable:
    """`function` of every place that one device has."""

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
        if jax.default_backend() != "cpu":
            return jax.vmap(one)(divided)
        return jax.lax.map(one, divided)

    return local
