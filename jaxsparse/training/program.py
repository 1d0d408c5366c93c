"""What the programs of all families share: compiled loops, totals, non-finite losses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.learner import Learner

Tree = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A run as pure functions of the state of one seed. `Runner` calls them; families add more.

    The state has a field `first_nonfinite_step`, int32: the first step with a loss that was not
    finite, or -1.

    Attributes:
      unit: the name of a step in messages, for example "batch".
      init: makes the state before the first step.
      train: `(state, *own, data, steps) -> state` takes `steps` more steps. `own` are the per-seed
        arguments, such as keys. `steps` may be traced (see `repeated`).
      position: `state -> {"step": ..., ...}`: how far the run is, as ints that checkpoints store.
        The state may have a leading axis of seeds.
      learned: `state -> tree` of the trained parameters, which must stay finite.

    Examples:
      >>> position = lambda state: {"step": first_of(state.step)}
      >>> program = Program("batch", init, repeated(step), position, learned)
    """

    unit: str
    init: Callable[..., Any]
    train: Callable[..., Any]
    position: Callable[[Any], dict[str, int]]
    learned: Callable[[Any], Tree]


def first_of(x: Any) -> int:
    """A number that is the same for all runs, as an int."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        x = x.addressable_data(0)
    return int(np.ravel(x)[0])


def repeated(step: Callable[..., Tree]) -> Callable[..., Tree]:
    """Turn `(state, *args) -> state` into a compiled loop `(state, *args, steps) -> state`.

    `steps` is traced. So one executable serves any number of steps, and a run that is split into
    several calls gives the same bits.

    Examples:
      >>> float(jax.jit(repeated(lambda x, y: x + y))(0.0, 2.0, 3))
      6.0
    """

    def steps(state, *args):
        return jax.lax.fori_loop(0, args[-1], lambda _, s: step(s, *args[:-1]), state)

    return steps


def after_step(state: Any, step: jax.Array, metrics: dict[str, jax.Array]) -> Any:
    """Update a state's `totals` and `first_nonfinite_step` with the metrics of step `step`.

    `metrics` are scalars and include "loss".
    """
    return state._replace(
        totals=add_metrics(state.totals, metrics),
        first_nonfinite_step=first_nonfinite(state.first_nonfinite_step, step, metrics["loss"]),
    )


def meta_step(learner: Learner, state: Any, tasks: Any) -> Any:
    """The state after one meta-step of `state.meta` on a batch of tasks."""
    meta, metrics = learner.step(state.meta, tasks, None)
    return after_step(state, state.meta.step, metrics)._replace(meta=meta)


def add_metrics(totals: dict[str, jax.Array], metrics: dict[str, jax.Array]) -> dict[str, Any]:
    """Add `metrics` to the running sums `totals`; names that `metrics` lacks keep their sum."""
    return {n: total + metrics[n] if n in metrics else total for n, total in totals.items()}


def first_nonfinite(earlier: jax.Array, step: jax.Array, loss: jax.Array) -> jax.Array:
    """The first step with a loss that was not finite, -1 for none; `earlier` is the one so far."""
    return jnp.where(~jnp.isfinite(loss) & (earlier < 0), step, earlier)


def keep_better(accuracy: jax.Array, best_accuracy: jax.Array, new: Tree, best: Tree) -> Tree:
    """`new` if `accuracy` is above `best_accuracy`, else `best`; NaN never counts as better."""
    return jax.tree.map(lambda n, b: jnp.where(accuracy > best_accuracy, n, b), new, best)


def learned_of(state: Any) -> dict[str, Any]:
    """The parameters of a method's state, and its mask parameters if it has any."""
    return {name: getattr(state, name) for name in ("params", "mask") if hasattr(state, name)}
