"""The two straight-through functions that the learned gates of sparse-MAML use."""

import functools

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_floating


def binary_mask(m: jax.Array, slope: float = 1.0) -> jax.Array:
    """Threshold `m` at zero, with the gradient of a linear function.

    Forward ``1[m >= 0]`` (1 at m = 0, 0 for NaN); backward ``dm = slope * ct``.

    Args:
      m: mask parameters, floating, any shape.
      slope: the straight-through slope: 1 in Eq. 10 of the paper, 0.5 in the authors' code, which
        computes ``(sign(m) + 1) / 2``.

    Returns:
      1.0 where ``m >= 0``, else 0.0, with the shape and dtype of `m`.

    Raises:
      TypeError: `m` is not floating.

    Examples:
      >>> binary_mask(jnp.array([-0.1, 0.0, 2.0]))
      Array([0., 1., 1.], dtype=float32)

    Source: von Oswald, Zhao et al. 2021, Eqs. 8 and 10.
    """
    check_floating("m", m)
    return _binary(slope, jnp.asarray(m))


def relu_mask(m: jax.Array) -> jax.Array:
    """Rectify `m`, with the gradient of the identity.

    Forward ``max(m, 0)``; backward ``dm = ct``, also for ``m < 0``. So a step size that has become
    zero can grow again, which is impossible with the true derivative.

    Args:
      m: mask parameters, floating, any shape.

    Returns:
      ``max(m, 0)`` with the shape and dtype of `m`.

    Raises:
      TypeError: `m` is not floating.

    Examples:
      >>> jax.grad(lambda m: relu_mask(m).sum())(jnp.array([-1.0, 1.0]))
      Array([1., 1.], dtype=float32)

    Source: von Oswald, Zhao et al. 2021, sparse-ReLU-MAML (supplement, Sec. A).
    """
    check_floating("m", m)
    return _relu(jnp.asarray(m))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _binary(slope, m):
    return (m >= 0).astype(m.dtype)


_binary.defvjp(
    lambda slope, m: (_binary(slope, m), None),
    lambda slope, _, ct: (ct if slope == 1.0 else slope * ct,),
)


@jax.custom_vjp
def _relu(m):
    return jnp.maximum(m, 0)


_relu.defvjp(lambda m: (_relu(m), None), lambda _, ct: (ct,))
