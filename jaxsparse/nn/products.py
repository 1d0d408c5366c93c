"""Matrix products in full precision, and matrix products with fast gradients."""

import jax.numpy as jnp
from jax import Array, lax

from jaxsparse.precision import custom_vjp


def exact_product(x: Array, y: Array) -> Array:
    """x y, for vectors or matrices, in full precision also on devices that round the factors."""
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)


# With fewer rows, the transpose below costs the following operations more than it saves.
_FEW_ROWS = 64


def transposed_product(a: Array, g: Array) -> Array:
    """aᵀ g, for the gradient of a product: a [rows, k] and g [rows, o] with many rows."""
    if a.shape[1] < g.shape[1] or len(a) <= _FEW_ROWS:
        return a.T @ g
    # If a is at least as wide as g, XLA on the CPU computes (gᵀ a)ᵀ 1.5 times faster. Without the
    # barrier, it would simplify this back to aᵀ g.
    return lax.optimization_barrier(g.T @ a).T


@custom_vjp
def matmul(a: Array, b: Array) -> Array:
    """a b for a tall a [rows, k] and a small b [k, o]; its gradient uses `transposed_product`."""
    return a @ b


def _matmul_forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return a @ b, (a, b)


def _matmul_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    a, b = saved
    return gradient @ b.T, transposed_product(a, gradient)


matmul.defvjp(_matmul_forward, _matmul_backward)
