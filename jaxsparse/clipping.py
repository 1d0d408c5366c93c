"""Gradient clipping by the norm of the whole tree."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def clip_by_norm(tree: Tree, bound: float | None) -> tuple[Tree, jax.Array]:
    """Scale a gradient by ``min(1, bound / (norm + 1e-6))``, as PyTorch's `clip_grad_norm_` does.

    Returns the gradient and its norm before clipping, float32 or wider. A bound None does not clip.
    With a bound, a gradient whose norm is not finite becomes NaN.

    Source: Pascanu et al. 2013, On the difficulty of training recurrent neural networks, Alg. 1.
    """
    norm = global_norm(tree)
    if bound is None:
        return tree, norm
    scale = clip_scale(norm, bound)
    return jax.tree.map(lambda x: x * scale.astype(x.dtype), tree), norm


def global_norm(tree: Tree) -> jax.Array:
    """The Euclidean norm over all leaves, float32 or wider."""
    # In half precision the squares would overflow or underflow.
    squares = [jnp.sum(jnp.square(x.astype(sum_dtype(x.dtype)))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares))


def clip_scale(norm: jax.Array, bound: float) -> jax.Array:
    """The clipping factor: ``min(1, bound / (norm + 1e-6))``, NaN if the norm is not finite."""
    # For an infinite norm the factor would be 0, and a diverged run would silently stop learning.
    return jnp.where(norm < jnp.inf, jnp.minimum(1.0, bound / (norm + 1e-6)), jnp.nan)


def sum_dtype(dtype: Any) -> Any:
    """The dtype for sums of values of `dtype`: float32 or wider."""
    return common_dtype(dtype, jnp.float32)


def common_dtype(*arrays: Any) -> Any:
    """The common dtype of these arrays or dtypes, also under JAX's strict dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays)
