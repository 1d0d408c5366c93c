"""JAX functions that call the compiled layers of a residual block. They have no derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsparse.nn.native.calls import call, floats, loaded, whole_vectors


def has_few_inputs(images: Array) -> bool:
    """True if `unit_backward` does not compute the gradient of these images."""
    return images.shape[3] <= loaded().few_inputs


def unit_forward(
    images: Array, kernel: Array, scale: Array, bias: Array, eps: float, slope: float
) -> tuple[Array, tuple[Array, ...]]:
    """Convolution, batch norm and leaky ReLU [n, h, w, o], and the residuals for `unit_backward`.

    All arguments are float32: images [n, h, w, c], kernel [3, 3, c, o] or [1, 1, c, o], scale and
    bias [o].
    """
    o = kernel.shape[3]
    results = [floats(*images.shape[:3], o), floats(*images.shape[:3], whole_vectors(o))]
    args = (images, kernel, scale, bias, np.float32(eps), np.float32(slope))
    out, *saved = call("UnitForward", [*results, floats(o), floats(o)], *args)
    return out, tuple(saved)


def unit_backward(
    inputs: tuple[Array, ...], saved: tuple[Array, ...], gradient: Array, slope: float
) -> tuple[Array | None, Array, Array, Array]:
    """The gradients of images (None if `has_few_inputs`), kernel, scale and bias.

    `inputs` and `saved` are the arguments and residuals of `unit_forward`; `gradient` is that of
    its output.
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
    """The 2x2 max-pool of leaky(a + b), and the places of the maxima for `join_backward`.

    a and b are float32 [n, h, w, c]; padding is 0 or 1.
    """
    n, h, w, c = a.shape
    size = (n, h // 2 + padding, w // 2 + padding)
    place = jax.ShapeDtypeStruct((*size, whole_vectors(c)), jnp.uint8)
    out, places = call("JoinForward", [floats(*size, c), place], a, b, np.float32(slope))
    return out, places


def join_backward(
    shape: tuple[int, ...], out: Array, place: Array, gradient: Array, slope: float
) -> Array:
    """The gradient of a, of this shape, from that of `out`; the gradient of b is the same."""
    args = (np.float32(slope), out, place, gradient)
    return call("JoinBackward", [floats(*shape)], *args)[0]
