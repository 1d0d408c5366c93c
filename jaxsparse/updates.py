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
    return gate.apply(mask, key if gate.stochastic else None)


def update(
    optimizer: optax.GradientTransformation,
    gradient: Tree,
    opt_state: optax.OptState,
    params: Tree,
) -> tuple[Tree, optax.OptState]:
    """Parameters and their optimiser's state, moved along a gradient."""
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
