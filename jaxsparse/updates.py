"""Small steps that every learner takes: cast a tree, apply a gate, move along a gradient."""

from typing import Any

import jax
import optax

from jaxsparse.gates import Gate

Tree = Any


def cast(tree: Tree, like: Tree) -> Tree:
    """The leaves of `tree` in the dtypes of those of `like`."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def apply_gate(gate: Gate, mask: Tree, key: jax.Array | None) -> Tree:
    """The step sizes a gate makes of m; the key is for stochastic gates alone."""
    check_gate(gate)
    return gate.apply(mask, key if gate.stochastic else None)


def apply_gate_per_task(gate: Gate, mask: Tree, key: jax.Array, tasks: int) -> Tree:
    """The step sizes for a batch of tasks, led by an axis of tasks where the gate is stochastic."""
    check_gate(gate)
    if not gate.stochastic:
        return gate.apply(mask, None)
    return jax.vmap(gate.apply, (None, 0))(mask, jax.random.split(key, tasks))


def check_gate(gate: Gate) -> None:
    """Raise TypeError unless `gate` has what a `Gate` has."""
    if isinstance(gate, type) or not all(hasattr(gate, name) for name in Gate._fields):
        raise TypeError(f"gate must be a Gate, as jaxsparse.gates makes them, got {gate!r}")


def init_optimizer(
    name: str, optimizer: optax.GradientTransformation, params: Tree
) -> optax.OptState:
    """The optimiser's first state; `name` is the argument's, for errors."""
    _check_optimizer(name, optimizer)
    return optimizer.init(params)


def update(
    name: str,
    optimizer: optax.GradientTransformation,
    gradient: Tree,
    opt_state: optax.OptState,
    params: Tree,
) -> tuple[Tree, optax.OptState]:
    """Parameters and their optimiser's state, moved along a gradient; `name` as above."""
    _check_optimizer(name, optimizer)
    try:
        # Optax mixes dtypes where JAX's strict promotion takes none, as in Adam's `b ** count`.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, opt_state, params)
    except (TypeError, ValueError, AttributeError) as error:
        # Such as an optimiser that asks for the loss's value, or another one than made the state.
        raise TypeError(
            f"{name}: its update must go by (gradient, state, params) alone, with the state that "
            f"this optimiser made; it failed with {type(error).__name__}: {error}"
        ) from error
    return optax.apply_updates(params, updates), opt_state


def _check_optimizer(name, optimizer):
    if isinstance(optimizer, type) or not all(hasattr(optimizer, x) for x in ("init", "update")):
        raise TypeError(f"{name} must be an optax.GradientTransformation, got {optimizer!r}")
