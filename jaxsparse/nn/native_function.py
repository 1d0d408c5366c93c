"""Compiled operations as JAX functions with derivatives of every order."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsparse.precision import custom_vjp

Arrays = tuple[Array, ...]


class Operation(NamedTuple):
    """A function of arrays, computed by compiled code, with its gradient.

    Attributes:
      forward: `(*inputs) -> (out, saved)`; `saved` are the residuals for `backward`.
      backward: `(inputs, saved, gradient) -> d_inputs`; None for inputs whose gradient it does not
        compute.
      in_xla: `(*inputs) -> out`, the same function in XLA, used for second derivatives.
      for_missing: `(*inputs) -> out`, the same function in XLA, used for the gradients that
        `backward` does not compute.
    """

    forward: Callable[..., tuple[Array, Arrays]]
    backward: Callable[[Arrays, Arrays, Array], Sequence[Array | None]]
    in_xla: Callable[..., Array]
    for_missing: Callable[..., Array]


def apply(operation: Operation, *inputs: Array) -> Array:
    """The output of `operation`."""
    return _with_residuals(operation, inputs)[0]


@partial(custom_vjp, nondiff_argnums=(0,))
def _with_residuals(operation: Operation, inputs: Arrays) -> tuple[Array, Arrays]:
    """The output of `operation`, and residuals, which are not differentiated."""
    return operation.forward(*inputs)


def _with_residuals_forward(operation: Operation, inputs: Arrays) -> tuple:
    # Calls the custom_vjp function, not `operation.forward`: a second derivative differentiates
    # this function, and `operation.forward` has no derivative.
    out, saved = _with_residuals(operation, inputs)
    return (out, saved), (inputs, saved)


def _with_residuals_backward(
    operation: Operation, residuals: tuple, gradients: tuple
) -> tuple[Arrays]:
    inputs, saved = residuals
    gradient = gradients[0]
    found = _gradient(operation, inputs, saved, gradient)
    # Computed by XLA, which removes it if it is not used, as for the first layer.
    pulled = jax.vjp(operation.for_missing, *inputs)[1](gradient) if None in found else inputs
    return (tuple(b if a is None else a for a, b in zip(found, pulled, strict=True)),)


_with_residuals.defvjp(_with_residuals_forward, _with_residuals_backward)


@partial(custom_vjp, nondiff_argnums=(0,))
def _gradient(
    operation: Operation, inputs: Arrays, saved: Arrays, gradient: Array
) -> tuple[Array | None, ...]:
    """The gradients of the inputs, as far as `operation.backward` computes them."""
    return tuple(operation.backward(inputs, saved, gradient))


def _gradient_forward(operation: Operation, inputs: Arrays, saved: Arrays, gradient: Array):
    return _gradient(operation, inputs, saved, gradient), (inputs, saved, gradient)


def _gradient_backward(operation: Operation, residuals: tuple, cotangents: tuple) -> tuple:
    """The second derivative, by XLA, with respect to the inputs rather than the residuals."""
    inputs, saved, gradient = residuals

    def first_derivative(inputs: Arrays, gradient: Array) -> tuple[Array | None, ...]:
        pulled = jax.vjp(operation.in_xla, *inputs)[1](gradient)
        return tuple(None if c is None else d for c, d in zip(cotangents, pulled, strict=True))

    d_inputs, d_gradient = jax.vjp(first_derivative, inputs, gradient)[1](cotangents)
    return d_inputs, jax.tree.map(_zero, saved), d_gradient


def _zero(x: Array) -> Array | np.ndarray:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


_gradient.defvjp(_gradient_forward, _gradient_backward)
