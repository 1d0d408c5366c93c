"""Matrix products: in full precision, and of many rows with gradients in the order that is fast."""

import jax.numpy as jnp
from jax import Array, lax

from jaxsparse.precision import custom_vjp


def exact_product(x: Array, y: Array) -> Array:
    """x y, for vectors or matrices, in full precision also where the device would round factors."""
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)


# With so few, what is made of the gradient next costs more for being transposed than it saves.
_FEW_ROWS = 64


def transposed_product(a: Array, g: Array) -> Array:
    """aᵀ g, for the gradient of a product: a [rows, k] and g [rows, o] with many rows."""
    if a.shape[1] < g.shape[1] or len(a) <= _FEW_ROWS:
        return a.T @ g
    # XLA's CPU product is 1.5 times faster as (gᵀ a)ᵀ when a is as wide as g or wider; without the
    # barrier it would be simplified back to aᵀ g.
    return lax.optimization_barrier(g.T @ a).T


@custom_vjp
def matmul(a: Array, b: Array) -> Array:
    """a b for a tall a [rows, k] and a small b [k, o]; only the order of its gradient is ours."""
    return a @ b


def _matmul_forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return a @ b, (a, b)


def _matmul_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    a, b = saved
    return gradient @ b.T, transposed_product(a, gradient)


matmul.defvjp(_matmul_forward, _matmul_backward)
