"""The layers of a residual block: convolution with batch norm and leaky ReLU, sum with pooling.

On the CPU, the form "xla" uses the operations of `ops`. In the form "native", compiled C++ computes
a layer in one operation, which reads and writes memory less often. On other platforms, both are the
form "direct".
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsparse.nn import direct_layers, native, ops
from jaxsparse.nn.native_function import Arrays, Operation, apply
from jaxsparse.precision import float32_by_default

FORMS = ("native", "direct", "xla")
_NATIVE_SIZES = (1, 3)


@float32_by_default
def conv_norm(
    images: Array,
    kernel: Array,
    scale: Array,
    bias: Array,
    *,
    slope: float = 1.0,
    eps: float = 1e-5,
    form: str = "xla",
) -> Array:
    """Apply a convolution, batch norm and leaky ReLU.

    out = leaky(scale * (y - mean(y)) / sqrt(var(y) + eps) + bias),  y = images * kernel,
    leaky(z) = z if z >= 0, else slope z,

    with mean and biased variance over images and positions. images is [n, h, w, c]; kernel is
    [k, k, c, o] with odd k, stride 1 and padding k // 2; scale and bias are [o]. Returns
    [n, h, w, o] in the dtype of images.

    form is "direct" (XLA's convolution), "native" or "xla". On the CPU, "native" is compiled C++
    for k = 1 and k = 3, and "xla" the operations of `ops`. Elsewhere, both are "direct".

    Source: Ioffe & Szegedy, Batch Normalization, 2015, Algorithm 1.
    """
    _check_form(form)
    _check(images, kernel, scale, bias)
    compiled = form == "native" and kernel.shape[0] in _NATIVE_SIZES
    on_cpu = _compiled_conv_norm if compiled else _conv_norm
    block = _by_platform(form, on_cpu, direct_layers.conv_norm)
    return block(images, kernel, scale, bias, slope=slope, eps=eps)


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, want one of {FORMS}")


def _check(images: Array, kernel: Array, scale: Array, bias: Array) -> None:
    if images.ndim != 4:
        raise ValueError(f"images: got shape {images.shape}, want [n, h, w, c]")
    size = kernel.shape[0] if kernel.ndim else 0
    if kernel.ndim != 4 or kernel.shape[:3] != (size, size, images.shape[3]) or size % 2 == 0:
        want = f"[k, k, {images.shape[3]}, o] with an odd k"
        raise ValueError(f"kernel: got shape {kernel.shape}, want {want}")
    ops.check_per_channel(kernel.shape[3], scale=scale, bias=bias)


def _by_platform(form: str, on_cpu: Callable, direct: Callable) -> Callable:
    """`direct` for the form "direct", otherwise what fits the platform when it is lowered."""

    def layer(*args: Array, **options: Any) -> Array:
        if form == "direct":
            return direct(*args, **options)
        here, elsewhere = partial(on_cpu, **options), partial(direct, **options)
        return jax.lax.platform_dependent(*args, cpu=here, default=elsewhere)

    return layer


def _leaky(x: Array, slope: float) -> Array:
    return x if slope == 1 else jax.nn.leaky_relu(x, slope)


def _conv_norm(
    images: Array, kernel: Array, scale: Array, bias: Array, *, slope: float, eps: float
) -> Array:
    return _leaky(ops.batch_norm(ops.conv(images, kernel), scale, bias, eps=eps), slope)


def _compiled_conv_norm(
    images: Array, kernel: Array, scale: Array, bias: Array, *, slope: float, eps: float
) -> Array:
    wide = [x.astype(jnp.float32) for x in (images, kernel, scale, bias)]
    in_xla = partial(_conv_norm, slope=slope, eps=eps)
    operation = Operation(
        partial(native.unit_forward, eps=eps, slope=slope),
        partial(native.unit_backward, slope=slope),
        in_xla,
        in_xla,
    )
    return apply(operation, *wide).astype(images.dtype)


def join(a: Array, b: Array, *, slope: float, padding: int = 0, form: str = "xla") -> Array:
    """Add two arrays, apply leaky ReLU and a 2x2 max-pool that drops odd edges.

    out = maxpool(leaky(a + b)); see `ops.max_pool` for ties and NaN. a and b are [n, h, w, c]; the
    slope of leaky ReLU is positive; the padding of the pooling is 0 or 1. Returns
    [n, (h + 2 padding) // 2, (w + 2 padding) // 2, c] in the dtype of a. form is as in `conv_norm`.
    """
    _check_form(form)
    if a.shape != b.shape or a.ndim != 4 or padding not in (0, 1) or slope <= 0:
        got = f"{a.shape} and {b.shape}, padding {padding}, slope {slope}"
        want = "equal shapes [n, h, w, c], padding 0 or 1, slope > 0"
        raise ValueError(f"a, b: got shapes {got}, want {want}")
    if min(a.shape[1:3]) + 2 * padding < 2:
        raise ValueError(f"a: got shape {a.shape}, want [n, h, w, c] with at least one 2x2 window")
    layer = _by_platform(form, _compiled_join if form == "native" else _join, direct_layers.join)
    return layer(a, b, slope=slope, padding=padding)


def _join(a: Array, b: Array, *, slope: float, padding: int) -> Array:
    return ops.max_pool(_leaky(a + b, slope), padding=padding)


def _compiled_join(a: Array, b: Array, *, slope: float, padding: int) -> Array:
    in_xla = partial(_join, slope=slope, padding=padding)
    operation = Operation(
        partial(_join_forward, slope, padding), partial(_join_backward, slope), in_xla, in_xla
    )
    return apply(operation, a.astype(jnp.float32), b.astype(jnp.float32)).astype(a.dtype)


def _join_forward(slope: float, padding: int, a: Array, b: Array) -> tuple[Array, Arrays]:
    out, place = native.join_forward(a, b, slope, padding)
    return out, (out, place)


def _join_backward(
    slope: float, inputs: Arrays, saved: Arrays, gradient: Array
) -> tuple[Array, Array]:
    out, place = saved
    d = native.join_backward(inputs[0].shape, out, place, gradient, slope)
    return d, d
