"""What the programs of all families share: counted steps, totals, the first step not finite."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.learner import Learner

Tree = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A run as pure functions of one seed's state; `Runner` advances it. A family adds its own.

    The state has `first_nonfinite_step`, int32: the first step whose loss was not finite, -1 for
    none.

    Attributes:
      unit: what a step is called, in messages.
      init: makes the state before the first step.
      train: `(state, *own, data, steps) -> state`: `steps` more steps, `own` being what tells the
        seeds apart. The count is traced (see `repeated`).
      position: `state -> {"step": ..., ...}`, how far a state on the host is, alone or led by the
        seeds; what a checkpoint's record says.
      learned: `state -> tree` of what training changes, which must stay finite.

    Example:
      >>> program = Program("batch", init, repeated(step), lambda s: {"step": s.step}, learned)
    """

    unit: str
    init: Callable[..., Any]
    train: Callable[..., Any]
    position: Callable[[Any], dict[str, Any]]
    learned: Callable[[Any], Tree]


def repeated(step: Callable[..., Tree]) -> Callable[..., Tree]:
    """A step as a compiled loop of a given number of steps.

    Args:
      step: `(state, *args) -> state`.

    Returns:
      `(state, *args, steps) -> state`. The count is traced: one executable serves any number, so
      that cutting a run into pieces changes no bit of it.

    Example:
      >>> float(jax.jit(repeated(lambda x, y: x + y))(0.0, 2.0, 3))
      6.0
    """

    def steps(state, *args):
        return jax.lax.fori_loop(0, args[-1], lambda _, s: step(s, *args[:-1]), state)

    return steps


def after_step(state: Any, step: jax.Array, metrics: dict[str, jax.Array]) -> Any:
    """A state's totals and first step that is not finite, after a step with these metrics.

    Args:
      state: has `totals`, which only know some of the metrics, and `first_nonfinite_step`.
      step: int32, the step's number.
      metrics: scalars, the "loss" among them.

    Returns:
      The state.

    Example:
      >>> state = after_step(state, state.step, {"loss": loss})._replace(params=params)
    """
    return state._replace(
        totals=add_metrics(state.totals, metrics),
        first_nonfinite_step=first_nonfinite(state.first_nonfinite_step, step, metrics["loss"]),
    )


def meta_step(learner: Learner, state: Any, tasks: Any) -> Any:
    """A state after its `meta` has taken a meta-step on a batch of tasks."""
    meta, metrics = learner.step(state.meta, tasks, None)
    return after_step(state, state.meta.step, metrics)._replace(meta=meta)


def add_metrics(totals: dict[str, jax.Array], metrics: dict[str, jax.Array]) -> dict[str, Any]:
    """The sums over the steps so far, with those that are among `metrics` added."""
    return {n: total + metrics[n] if n in metrics else total for n, total in totals.items()}


def first_nonfinite(earlier: jax.Array, step: jax.Array, loss: jax.Array) -> jax.Array:
    """The first step whose loss was not finite, -1 for none.

    Args:
      earlier: int32, the first of the steps before, -1 for none.
      step: int32, this step's number.
      loss: its loss.

    Returns:
      int32.

    Example:
      >>> int(first_nonfinite(jnp.int32(-1), jnp.int32(7), jnp.float32(jnp.nan)))
      7
    """
    return jnp.where(~jnp.isfinite(loss) & (earlier < 0), step, earlier)


def keep_better(accuracy: jax.Array, best_accuracy: jax.Array, new: Tree, best: Tree) -> Tree:
    """`new` where its accuracy is above the best so far, else `best`; NaN is above nothing."""
    return jax.tree.map(lambda n, b: jnp.where(accuracy > best_accuracy, n, b), new, best)


def learned_of(state: Any) -> dict[str, Any]:
    """The parameters of a method's state, and of its gate where it has one."""
    return {name: getattr(state, name) for name in ("params", "mask") if hasattr(state, name)}
