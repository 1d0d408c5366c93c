"""Gradients bounded by the norm of their whole tree."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def clip_by_norm(tree: Tree, bound: float | None) -> tuple[Tree, jax.Array]:
    """Scale a gradient by ``min(1, bound / (norm + 1e-6))``, as PyTorch's clipping does.

    Args:
      tree: the gradient, floating arrays.
      bound: of the Euclidean norm over all leaves; None leaves the gradient as it is.

    Returns:
      The gradient, and its norm before it was scaled, float32 or wider.

    Example:
      >>> clip_by_norm({"w": jnp.array([3.0, 4.0])}, 10.0)[1]
      Array(5., dtype=float32)

    Source: Pascanu et al. 2013, On the difficulty of training recurrent neural networks, Alg. 1.
    """
    # Half-precision squares would overflow or drown.
    squares = [jnp.sum(jnp.square(x.astype(sum_dtype(x.dtype)))) for x in jax.tree.leaves(tree)]
    norm = jnp.sqrt(sum(squares))
    if bound is None:
        return tree, norm
    scale = jnp.minimum(1.0, bound / (norm + 1e-6))
    return jax.tree.map(lambda x: x * scale.astype(x.dtype), tree), norm


def sum_dtype(dtype: Any) -> Any:
    """The dtype to add up values of `dtype` in: float32 for halves, which keep eight bits."""
    return jnp.promote_types(dtype, jnp.float32)
