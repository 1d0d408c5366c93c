"""Helpers of all learners: cast a tree, apply a gate, update parameters."""

from typing import Any

import jax
import optax

from jaxsparse.gates import Gate

Tree = Any


def cast(tree: Tree, like: Tree) -> Tree:
    """`tree` in the dtypes of `like`."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def apply_gate(gate: Gate, mask: Tree, key: jax.Array | None) -> Tree:
    """The step sizes of a gate; only stochastic gates use the key."""
    check_gate(gate)
    return gate.apply(mask, key if gate.stochastic else None)


def apply_gate_per_task(gate: Gate, mask: Tree, key: jax.Array, tasks: int) -> Tree:
    """The step sizes for a batch of tasks, with a leading task axis if the gate is stochastic."""
    check_gate(gate)
    if not gate.stochastic:
        return gate.apply(mask, None)
    return jax.vmap(gate.apply, (None, 0))(mask, jax.random.split(key, tasks))


def check_gate(gate: Gate) -> None:
    """Raise TypeError unless `gate` has the attributes of a `Gate`."""
    if isinstance(gate, type) or not all(hasattr(gate, name) for name in Gate._fields):
        raise TypeError(f"gate must be a Gate, such as one of jaxsparse.gates, got {gate!r}")


def init_optimizer(
    name: str, optimizer: optax.GradientTransformation, params: Tree
) -> optax.OptState:
    """The initial state of the optimiser; `name` is the argument's name, for errors."""
    _check_optimizer(name, optimizer)
    return optimizer.init(params)


def update(
    name: str,
    optimizer: optax.GradientTransformation,
    gradient: Tree,
    opt_state: optax.OptState,
    params: Tree,
) -> tuple[Tree, optax.OptState]:
    """One step of the optimiser: the new parameters and the new state; `name` is for errors."""
    _check_optimizer(name, optimizer)
    try:
        # Optax mixes dtypes, as in Adam's `b ** count`, which strict promotion does not allow.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, opt_state, params)
    except (TypeError, ValueError, AttributeError) as error:
        # The optimiser needs more arguments, such as the loss, or another one created the state.
        raise TypeError(
            f"{name}: update(gradient, state, params) must work with a state of this optimiser; "
            f"it failed with {type(error).__name__}: {error}"
        ) from error
    return optax.apply_updates(params, updates), opt_state


def _check_optimizer(name, optimizer):
    if isinstance(optimizer, type) or not all(hasattr(optimizer, x) for x in ("init", "update")):
        raise TypeError(f"{name} must be an optax.GradientTransformation, got {optimizer!r}")
