"""Convolution, batch norm, ReLU and 2x2 max-pool as one operation: a block of Conv4.

Inside a compiled loop on the CPU the convolution is the smaller part of a block; passing over its
output costs more. The forms save passes; here the form is chosen.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxsparse.nn import block_forms, native, native_block, ops
from jaxsparse.precision import float32_by_default

_BLOCKS = {
    "gram": block_forms.gram,
    "winograd": block_forms.by_winograd,
    "patches": block_forms.by_patches,
    "native": native_block.block,
}
FORMS = tuple(_BLOCKS)


@float32_by_default
def conv_norm_pool(
    images: Array,
    kernel: Array,
    scale: Array,
    bias: Array,
    *,
    eps: float = 1e-5,
    form: str | None = None,
) -> Array:
    """Apply a 3x3 convolution, batch norm, ReLU and a 2x2 max-pool that drops odd edges.

    out = maxpool(relu(scale * (y - mean(y)) / sqrt(var(y) + eps) + bias)),  y = images * kernel,

    with mean and biased variance over images and positions. A constant added to y, such as the
    bias of the convolution, changes nothing and is not taken. Among equal entries of a pooling
    window the first in row order receives the gradient (PyTorch's rule). NaN and infinity go on to
    all that follows from them; ReLU lets NaN through. A variance that overflows gives NaN.

    Args:
      images: [n, h, w, c], float; h, w >= 2.
      kernel: [3, 3, c, o], float; stride 1, padding 1.
      scale: [o], float.
      bias: [o], float.
      eps: added to the variance.
      form: "gram", "winograd", "patches" or "native": the same values, computed differently, the
        last by compiled C++. Default: on the CPU "native" where there is a C++ compiler, else the
        fastest of the others for the shape; "patches" elsewhere.

    Returns:
      [n, h // 2, w // 2, o], in the dtype of images. Computed in float32 throughout.

    Raises:
      ValueError: for shapes that do not fit, or a form that is unknown or not to be had.

    Example:
      >>> images, kernel = jnp.ones((2, 7, 7, 3)), jnp.ones((3, 3, 3, 8))
      >>> conv_norm_pool(images, kernel, jnp.ones(8), jnp.zeros(8)).shape
      (2, 3, 3, 8)

    Source: Ioffe & Szegedy, Batch Normalization, 2015, Algorithm 1; the forms are our own.
    """
    _check(images, kernel, scale, bias)
    form = _default_form(images, kernel) if form is None else form
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, want one of {FORMS}")
    block = _BLOCKS[form]
    wide = [x.astype(jnp.float32) for x in (images, kernel, scale, bias)]
    out = block(wide[0], wide[1], wide[2], wide[3], eps)
    return out.astype(images.dtype)


def _default_form(images: Array, kernel: Array) -> str:
    if jax.default_backend() == "cpu" and native.available():
        return "native"
    return ops.default_form(images.shape, kernel.shape)


def _check(images: Array, kernel: Array, scale: Array, bias: Array) -> None:
    if images.ndim != 4 or min(images.shape[1:3]) < 2:
        raise ValueError(f"images: got shape {images.shape}, want [n, h, w, c] with h, w >= 2")
    want = (3, 3, images.shape[3])
    if kernel.ndim != 4 or kernel.shape[:3] != want:
        raise ValueError(f"kernel: got shape {kernel.shape}, want [3, 3, {images.shape[3]}, o]")
    for name, x in (("scale", scale), ("bias", bias)):
        if x.shape != kernel.shape[3:]:
            raise ValueError(f"{name}: got shape {x.shape}, want {kernel.shape[3:]}")
