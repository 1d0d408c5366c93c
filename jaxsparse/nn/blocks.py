"""A block of Conv4, convolution, batch norm, ReLU and 2x2 max-pool, as one operation.

Inside a compiled loop on the CPU, reading and writing the output of the convolution takes longer
than the convolution itself. There are several implementations ("forms") that do so less often.
This module chooses between them.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxsparse.machine import default_platform
from jaxsparse.nn import block_forms, direct, native, native_block, ops
from jaxsparse.nn.direct import Prepared
from jaxsparse.nn.patch_pool import has_kernels
from jaxsparse.precision import float32_by_default

_log = logging.getLogger(__name__)


def _fastest_on_cpu(images: Array, kernel: Array, *params: Any) -> Array:
    return _FORMS[ops.fastest_on_cpu(images.shape, kernel.shape)](images, kernel, *params)


def _by_platform(on_cpu: Callable[..., Array], pallas: bool) -> Callable[..., Array]:
    """A form that is `on_cpu` if the program is lowered for the CPU, else `direct.block`."""

    def block(images: Array | Prepared, *params: Any) -> Array:
        *arrays, eps = params

        def here(images: Array | Prepared, *arrays: Array) -> Array:
            return on_cpu(direct.plain(images), *arrays, eps)

        elsewhere = functools.partial(direct.block, eps=eps, pallas=pallas)
        return jax.lax.platform_dependent(images, *arrays, cpu=here, default=elsewhere)

    return block


_FORMS: dict[str, Callable[..., Array]] = {
    "direct": direct.block,
    "gram": block_forms.gram,
    "winograd": block_forms.by_winograd,
    "patches": block_forms.by_patches,
    "native": _by_platform(native_block.block, pallas=True),
    "pallas": _by_platform(_fastest_on_cpu, pallas=True),
    "xla": _by_platform(_fastest_on_cpu, pallas=False),
}
FORMS = tuple(_FORMS)
_PREPARED = ("direct", "native", "pallas", "xla")  # forms that use the output of `prepare`

Blocks = Literal["auto", "native", "pallas", "xla"]
BLOCKS: tuple[str, ...] = get_args(Blocks)


def choose_blocks(blocks: Blocks) -> Literal["native", "pallas", "xla"]:
    """Resolve "auto", as `conv4` documents it; compile the C++ if needed.

    ValueError if `blocks` is unknown, or "native" and not available.
    """
    if blocks not in BLOCKS:
        raise ValueError(f"blocks: got {blocks!r}, want one of {BLOCKS}")
    if blocks == "pallas" and not has_kernels():
        raise ValueError("blocks: 'pallas' is not available because JAX has no Pallas for Triton")
    if blocks in ("pallas", "xla"):
        return blocks
    platform = default_platform()
    if blocks == "auto" and platform != "cpu":
        return "pallas" if platform == "gpu" and _runs_triton() else "xla"
    reason = native.why_not() if platform == "cpu" else f"the default device is a {platform}"
    if reason is None:
        return "native"
    if blocks == "native":
        raise ValueError(f"blocks: 'native' is not available because {reason}")
    _warn_once(f"using XLA's convolution blocks, which take almost twice as long, because {reason}")
    return "xla"


def _runs_triton() -> bool:
    """Whether the GPU is one of NVIDIA's that Triton supports, Ampere or later, and JAX has it."""
    capability = getattr(jax.devices("gpu")[0], "compute_capability", None)
    numbers = str(capability).split(".")
    return has_kernels() and numbers[0].isdigit() and int(numbers[0]) >= 8


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)


@float32_by_default
def conv_norm_pool(
    images: Array | Prepared,
    kernel: Array,
    scale: Array,
    bias: Array,
    *,
    eps: float = 1e-5,
    form: str | None = None,
) -> Array:
    """Apply a 3x3 convolution, batch norm, ReLU and a 2x2 max-pool that drops odd edges.

    out = maxpool(relu(scale * (y - mean(y)) / sqrt(var(y) + eps) + bias)),  y = images * kernel,

    with mean and biased variance over images and positions. There is no bias of the convolution, as
    the norm would cancel it. Among equal entries of a pooling window, the first in row order
    receives the gradient, as in PyTorch. NaN and infinity propagate, also through ReLU. A variance
    that overflows gives NaN.

    Args:
      images: [n, h, w, c], float; h, w >= 2. Or the output of `prepare`.
      kernel: [3, 3, c, o], float; stride 1, padding 1.
      scale: [o], float.
      bias: [o], float.
      eps: added to the variance.
      form: the implementation. All compute the same values up to rounding. "direct" uses XLA's
        convolution. On the CPU, "native" is compiled C++; "pallas" and "xla" are the fastest of
        "gram", "winograd" and "patches" for the shape. Elsewhere, these three are "direct", but
        only "xla" without the kernel in Pallas that computes a first layer on NVIDIA GPUs.
        Default: `choose_blocks("auto")`.

    Returns:
      [n, h // 2, w // 2, o], in the dtype of images, computed in float32.

    Raises:
      ValueError: shapes do not fit, or the form is unknown or not available.

    Source: Ioffe & Szegedy, Batch Normalization, 2015, Algorithm 1; the forms are our own.
    """
    plain = direct.plain(images)
    _check(plain, kernel, scale, bias)
    form = choose_blocks("auto") if form is None else form
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, want one of {FORMS}")
    if form not in _PREPARED:
        images = plain
    args = jax.tree.map(lambda x: x.astype(jnp.float32), (images, kernel, scale, bias))
    return _FORMS[form](*args, eps).astype(plain.dtype)


@float32_by_default
def prepare(images: Array, kernel: tuple[int, ...], form: str) -> Array | Prepared:
    """Compute what a block needs of its images [n, h, w, c], whatever its parameters.

    `conv_norm_pool` takes the result instead of the images, if the kernel has this shape. In a loop
    on the same images, XLA would compute it again in every step on a GPU.
    """
    if form not in _PREPARED or not ops.has_few_channels(kernel):
        return images
    wide = images.astype(jnp.float32)
    if form == "direct":
        return direct.prepare(wide)

    def not_used(images: Array) -> Prepared:
        shapes = jax.eval_shape(direct.prepare, images)
        return jax.tree.map(jnp.zeros_like, shapes)._replace(images=images)

    return jax.lax.platform_dependent(wide, cpu=not_used, default=direct.prepare)


def _check(images: Array, kernel: Array, scale: Array, bias: Array) -> None:
    if images.ndim != 4 or min(images.shape[1:3]) < 2:
        raise ValueError(f"images: got shape {images.shape}, want [n, h, w, c] with h, w >= 2")
    want = (3, 3, images.shape[3])
    if kernel.ndim != 4 or kernel.shape[:3] != want:
        raise ValueError(f"kernel: got shape {kernel.shape}, want [3, 3, {images.shape[3]}, o]")
    ops.check_per_channel(kernel.shape[3], scale=scale, bias=bias)
