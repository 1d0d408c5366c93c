"""Gradients bounded by the norm of their whole tree."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def clip_by_norm(tree: Tree, bound: float | None) -> tuple[Tree, jax.Array]:
    """Scale a gradient by ``min(1, bound / (norm + 1e-6))``, as PyTorch's clipping does.

    Args:
      tree: the gradient, floating arrays.
      bound: of the Euclidean norm over all leaves; None leaves the gradient as it is. Under a bound
        a gradient whose norm is not finite becomes NaN throughout.

    Returns:
      The gradient, and its norm before it was scaled, float32 or wider.

    Example:
      >>> clip_by_norm({"w": jnp.array([3.0, 4.0])}, 10.0)[1]
      Array(5., dtype=float32)

    Source: Pascanu et al. 2013, On the difficulty of training recurrent neural networks, Alg. 1.
    """
    norm = global_norm(tree)
    if bound is None:
        return tree, norm
    scale = clip_scale(norm, bound)
    return jax.tree.map(lambda x: x * scale.astype(x.dtype), tree), norm


def global_norm(tree: Tree) -> jax.Array:
    """The Euclidean norm over all leaves, float32 or wider."""
    # Half-precision squares would overflow or drown.
    squares = [jnp.sum(jnp.square(x.astype(sum_dtype(x.dtype)))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares))


def clip_scale(norm: jax.Array, bound: float) -> jax.Array:
    """What a gradient of that norm is multiplied by: ``min(1, bound / (norm + 1e-6))``, or NaN."""
    # A norm that overflows would give 0, and make a step of a diverged run one that stands still.
    return jnp.where(norm < jnp.inf, jnp.minimum(1.0, bound / (norm + 1e-6)), jnp.nan)


def sum_dtype(dtype: Any) -> Any:
    """The dtype to add up values of `dtype` in: float32 for halves, which keep eight bits."""
    return common_dtype(dtype, jnp.float32)


def common_dtype(*arrays: Any) -> Any:
    """The dtype that holds the values of all these arrays or dtypes."""
    # Said here in so many words, so that it holds under JAX's strict promotion, too.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays)
