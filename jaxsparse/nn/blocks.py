"""Convolution, batch norm, ReLU and 2x2 max-pool as one operation: a block of Conv4.

Inside a compiled loop on the CPU the convolution is the smaller part of a block; passing over its
output costs more. The forms save passes; here the form is chosen.
"""

import functools
import logging
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxsparse.machine import default_platform
from jaxsparse.nn import block_forms, native, native_block, ops
from jaxsparse.precision import float32_by_default

_log = logging.getLogger(__name__)


def _xla(images: Array, kernel: Array, scale: Array, bias: Array, eps: float) -> Array:
    """The fastest known form in XLA's operations; the platform is known when it is lowered."""
    fastest = _FORMS[ops.fastest_on_cpu(images.shape, kernel.shape)]
    args = (images, kernel, scale, bias)
    if fastest is block_forms.by_patches:
        return block_forms.by_patches(*args, eps)
    on_cpu, elsewhere = (functools.partial(f, eps=eps) for f in (fastest, block_forms.by_patches))
    return jax.lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)


_FORMS = {
    "gram": block_forms.gram,
    "winograd": block_forms.by_winograd,
    "patches": block_forms.by_patches,
    "native": native_block.block,
    "xla": _xla,
}
FORMS = tuple(_FORMS)

Blocks = Literal["auto", "native", "xla"]
BLOCKS: tuple[str, ...] = get_args(Blocks)


def choose_blocks(blocks: Blocks) -> Literal["native", "xla"]:
    """Decide what computes the blocks of Conv4, compiling it where that is still to be done.

    Args:
      blocks: "native", by C++ compiled for this machine's processor; "xla", by XLA's operations, on
        any platform; "auto", "native" where JAX's default device is the CPU and there is a C++
        compiler that works, else "xla".

    Returns:
      "native" or "xla".

    Raises:
      ValueError: blocks is none of these, or "native" and cannot be had.

    Example:
      >>> choose_blocks("xla")
      'xla'
    """
    if blocks not in BLOCKS:
        raise ValueError(f"blocks: got {blocks!r}, want one of {BLOCKS}")
    if blocks == "xla":
        return "xla"
    platform = default_platform()
    if blocks == "auto" and platform != "cpu":
        return "xla"
    reason = native.why_not() if platform == "cpu" else f"the default device is a {platform}"
    if reason is None:
        return "native"
    if blocks == "native":
        raise ValueError(f"blocks: 'native' cannot be had, as {reason}")
    _tell_once(f"the convolution blocks are XLA's, which take nearly twice the time, as {reason}")
    return "xla"


@functools.cache
def _tell_once(message: str) -> None:
    _log.warning(message)


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
      form: "gram", "winograd", "patches", "native" or "xla": the same values, computed differently,
        "native" by compiled C++ on the CPU only. "xla": on the CPU the fastest of the first three
        for the shape, elsewhere "patches". Default: `choose_blocks("auto")`.

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
    form = choose_blocks("auto") if form is None else form
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, want one of {FORMS}")
    block = _FORMS[form]
    wide = [x.astype(jnp.float32) for x in (images, kernel, scale, bias)]
    out = block(wide[0], wide[1], wide[2], wide[3], eps)
    return out.astype(images.dtype)


def _check(images: Array, kernel: Array, scale: Array, bias: Array) -> None:
    if images.ndim != 4 or min(images.shape[1:3]) < 2:
        raise ValueError(f"images: got shape {images.shape}, want [n, h, w, c] with h, w >= 2")
    want = (3, 3, images.shape[3])
    if kernel.ndim != 4 or kernel.shape[:3] != want:
        raise ValueError(f"kernel: got shape {kernel.shape}, want [3, 3, {images.shape[3]}, o]")
    for name, x in (("scale", scale), ("bias", bias)):
        if x.shape != kernel.shape[3:]:
            raise ValueError(f"{name}: got shape {x.shape}, want {kernel.shape[3:]}")
