"""Calls of the compiled layers of a residual block: arrays in, arrays out, no derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsparse.nn.native.calls import call, floats, loaded, whole_vectors


def has_few_inputs(images: Array) -> bool:
    """Whether a unit of these images gives no gradient of them."""
    return images.shape[3] <= loaded().few_inputs


def unit_forward(
    images: Array, kernel: Array, scale: Array, bias: Array, eps: float, slope: float
) -> tuple[Array, tuple[Array, ...]]:
    """Convolution, batch norm and leaky ReLU, and what `unit_backward` needs of the way to it.

    Args:
      images: [n, h, w, c], float32.
      kernel: [3, 3, c, o] or [1, 1, c, o], float32.
      scale: [o], float32.
      bias: [o], float32.
      eps: added to the variance.
      slope: of the leaky ReLU.

    Returns:
      out [n, h, w, o], and the residuals, which only `unit_backward` can read.
    """
    o = kernel.shape[3]
    results = [floats(*images.shape[:3], o), floats(*images.shape[:3], whole_vectors(o))]
    args = (images, kernel, scale, bias, np.float32(eps), np.float32(slope))
    out, *saved = call("UnitForward", [*results, floats(o), floats(o)], *args)
    return out, tuple(saved)


def unit_backward(
    inputs: tuple[Array, ...], saved: tuple[Array, ...], gradient: Array, slope: float
) -> tuple[Array | None, Array, Array, Array]:
    """The gradients of images, kernel, scale and bias, from that of the output.

    Args:
      inputs: images, kernel, scale and bias, as `unit_forward` has them.
      saved: the residuals of `unit_forward`.
      gradient: [n, h, w, o], float32.
      slope: of the leaky ReLU.

    Returns:
      Four arrays, of the shapes of images, kernel, scale and bias; None for the first where
      `has_few_inputs`.
    """
    images, kernel, scale, bias = inputs
    few = has_few_inputs(images)
    shapes = [kernel.shape, scale.shape, bias.shape, (0,) if few else images.shape]
    results = [floats(*shape) for shape in shapes]
    d_kernel, d_scale, d_bias, d_images = call(
        "UnitBackward", results, *inputs, np.float32(slope), *saved, gradient
    )
    return None if few else d_images, d_kernel, d_scale, d_bias


def join_forward(a: Array, b: Array, slope: float, padding: int) -> tuple[Array, Array]:
    """The 2x2 max-pool of leaky(a + b), and the places of the maxima.

    Args:
      a: [n, h, w, c], float32.
      b: [n, h, w, c], float32.
      slope: of the leaky ReLU.
      padding: of the pooling, 0 or 1.

    Returns:
      out [n, (h + 2 padding) // 2, (w + 2 padding) // 2, c], and the places, which only
      `join_backward` can read.
    """
    n, h, w, c = a.shape
    size = (n, h // 2 + padding, w // 2 + padding)
    place = jax.ShapeDtypeStruct((*size, whole_vectors(c)), jnp.uint8)
    out, places = call("JoinForward", [floats(*size, c), place], a, b, np.float32(slope))
    return out, places


def join_backward(
    shape: tuple[int, ...], out: Array, place: Array, gradient: Array, slope: float
) -> Array:
    """The gradient of a and of b, which is the same.

    Args:
      shape: that of a.
      out: of `join_forward`.
      place: the places of the maxima.
      gradient: of `out`.
      slope: of the leaky ReLU.

    Returns:
      [n, h, w, c].
    """
    args = (np.float32(slope), out, place, gradient)
    return call("JoinBackward", [floats(*shape)], *args)[0]
