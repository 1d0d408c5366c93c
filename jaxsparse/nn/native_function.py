"""Operations in C++ as functions with derivatives of every order."""

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
    """A function of arrays that compiled code computes, with its gradient.

    Attributes:
      forward: `(*inputs) -> (out, saved)`.
      backward: `(inputs, saved, gradient) -> d_inputs`, None for those that `in_xla` is to give.
      in_xla: `(*inputs) -> out`, the same by XLA, from which second derivatives are taken.
      for_missing: `(*inputs) -> out`, the same by XLA, for the gradients that `backward` lacks.
    """

    forward: Callable[..., tuple[Array, Arrays]]
    backward: Callable[[Arrays, Arrays, Array], Sequence[Array | None]]
    in_xla: Callable[..., Array]
    for_missing: Callable[..., Array]


def apply(operation: Operation, *inputs: Array) -> Array:
    """The operation's output."""
    return _with_residuals(operation, inputs)[0]


@partial(custom_vjp, nondiff_argnums=(0,))
def _with_residuals(operation: Operation, inputs: Arrays) -> tuple[Array, Arrays]:
    """The operation's output, and residuals of which no derivative is taken."""
    return operation.forward(*inputs)


def _with_residuals_forward(operation: Operation, inputs: Arrays) -> tuple:
    # By the operation itself, not by the call in it: where a gradient is differentiated again, this
    # is differentiated, and the call has no derivative.
    out, saved = _with_residuals(operation, inputs)
    return (out, saved), (inputs, saved)


def _with_residuals_backward(
    operation: Operation, residuals: tuple, gradients: tuple
) -> tuple[Arrays]:
    inputs, saved = residuals
    gradient = gradients[0]
    found = _gradient(operation, inputs, saved, gradient)
    # By XLA, which drops it where nobody asks for it, as nobody does at a first layer.
    pulled = jax.vjp(operation.for_missing, *inputs)[1](gradient) if None in found else inputs
    return (tuple(b if a is None else a for a, b in zip(found, pulled, strict=True)),)


_with_residuals.defvjp(_with_residuals_forward, _with_residuals_backward)


@partial(custom_vjp, nondiff_argnums=(0,))
def _gradient(
    operation: Operation, inputs: Arrays, saved: Arrays, gradient: Array
) -> tuple[Array | None, ...]:
    """The gradients of the inputs that the compiled code gives."""
    return tuple(operation.backward(inputs, saved, gradient))


def _gradient_forward(operation: Operation, inputs: Arrays, saved: Arrays, gradient: Array):
    return _gradient(operation, inputs, saved, gradient), (inputs, saved, gradient)


def _gradient_backward(operation: Operation, residuals: tuple, cotangents: tuple) -> tuple:
    """The second derivative, by XLA: of what the residuals were made from, not of them."""
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
