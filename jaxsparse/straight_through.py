"""The two straight-through primitives every learned gate is made of."""

import functools

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_floating


def binary_mask(m: jax.Array, slope: float = 1.0) -> jax.Array:
    """Threshold `m` at zero; the cotangent passes through as if it were a line.

    Forward ``1[m >= 0]`` (zero included, NaN excluded); backward ``dm = slope * ct``.

    Args:
      m: mask parameters, floating, any shape.
      slope: the straight-through slope. The paper's Eq. 10 has 1; the authors' listing computes
        ``(sign(m) + 1) / 2``, which has 0.5.

    Returns:
      1.0 where ``m >= 0``, else 0.0, with the shape and dtype of `m`.

    Raises:
      TypeError: `m` is not floating.

    Example:
      >>> binary_mask(jnp.array([-0.1, 0.0, 2.0]))
      Array([0., 1., 1.], dtype=float32)

    Source: von Oswald, Zhao et al. 2021, Eqs. 8 and 10.
    """
    check_floating("m", m)
    return _binary(slope, jnp.asarray(m))


def relu_mask(m: jax.Array) -> jax.Array:
    """Rectify `m`; the cotangent passes through unchanged, also where ``m < 0``.

    Forward ``max(m, 0)``; backward ``dm = ct``: a parameter whose rate has fallen to zero can
    come back, which the true derivative of the rectifier would forbid.

    Args:
      m: mask parameters, floating, any shape.

    Returns:
      ``max(m, 0)`` with the shape and dtype of `m`.

    Raises:
      TypeError: `m` is not floating.

    Example:
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
