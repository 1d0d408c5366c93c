"""The compiled Conv4 block as a JAX function with derivatives of every order."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsparse.nn import block_forms, native
from jaxsparse.precision import custom_vjp


class Inputs(NamedTuple):
    """The arguments of the block, without eps."""

    images: Array
    kernel: Array
    scale: Array
    bias: Array


def block(images: Array, kernel: Array, scale: Array, bias: Array, eps: float) -> Array:
    """The block of `block_forms`, computed by `native.forward` and `native.backward`."""
    return _with_residuals(eps, Inputs(images, kernel, scale, bias))[0]


@partial(custom_vjp, nondiff_argnums=(0,))
def _with_residuals(eps: float, inputs: Inputs) -> tuple[Array, tuple[Array, ...]]:
    """The output of the block, and residuals, which are not differentiated."""
    return native.forward(*inputs, eps=eps)


def _with_residuals_forward(eps: float, inputs: Inputs) -> tuple:
    # Calls the custom_vjp function, not `native.forward`: a second derivative differentiates this
    # function, and `native.forward` has no derivative.
    out, saved = _with_residuals(eps, inputs)
    return (out, saved), (inputs, saved)


def _with_residuals_backward(eps: float, residuals: tuple, gradients: tuple) -> tuple[Inputs]:
    inputs, saved = residuals
    gradient = gradients[0]
    d_kernel, d_scale, d_bias, *d_images = _gradient(eps, inputs, saved, gradient)
    if not d_images:
        # Computed by XLA, which removes it if it is not used, as for the first layer.
        _, kernel, scale, bias = inputs
        pull = jax.vjp(lambda x: block_forms.gram(x, kernel, scale, bias, eps), inputs.images)[1]
        d_images = pull(gradient)
    return (Inputs(d_images[0], d_kernel, d_scale, d_bias),)


_with_residuals.defvjp(_with_residuals_forward, _with_residuals_backward)


@partial(custom_vjp, nondiff_argnums=(0,))
def _gradient(
    eps: float, inputs: Inputs, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, ...]:
    """The gradients of kernel, scale, bias and, if `native.backward` has it, images."""
    images, kernel, scale, _ = inputs
    d_images, *others = native.backward(images, kernel, scale, saved, gradient)
    return tuple(others) if d_images is None else (*others, d_images)


def _gradient_forward(
    eps: float, inputs: Inputs, saved: tuple[Array, ...], gradient: Array
) -> tuple:
    return _gradient(eps, inputs, saved, gradient), (inputs, saved, gradient)


def _gradient_backward(eps: float, residuals: tuple, cotangents: tuple) -> tuple:
    """The second derivative, by XLA, with respect to the inputs rather than the residuals."""
    inputs, saved, gradient = residuals

    def block(inputs: Inputs) -> Array:
        return block_forms.by_patches(*inputs, eps=eps)

    def first_derivative(inputs: Inputs, gradient: Array) -> tuple[Array, ...]:
        ((d_images, *others),) = jax.vjp(block, inputs)[1](gradient)
        return (*others, d_images)[: len(cotangents)]

    d_inputs, d_gradient = jax.vjp(first_derivative, inputs, gradient)[1](cotangents)
    return d_inputs, jax.tree.map(_zero, saved), d_gradient


def _zero(x: Array) -> Array | np.ndarray:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


_gradient.defvjp(_gradient_forward, _gradient_backward)
