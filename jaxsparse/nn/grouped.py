"""Convolutions of several tasks at once, one kernel per task, as cuDNN computes them fastest.

`vmap` over tasks turns a convolution into one with a group of channels per task. JAX's rule for
the gradient of the kernels gives XLA a convolution that cuDNN has no good algorithm for: one whose
window is a whole image. The primitives here keep the tasks next to the channels, [n, h, w, t, c],
in the convolution and in both of its gradients. So all three are cuDNN's own grouped convolutions,
and no array is transposed between them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# ⟨images * kernel, out⟩ is linear in each of the three. Each is found from the other two, as the
# derivative, and the derivatives of that are again of this kind.
_convolution = Primitive("grouped_convolution")
Axis = tuple[int, int]  # where the axis of tasks is, and the rank without it
_IMAGES = (3, 4)  # also of kernels
# The operands of each kind, in order.
_OPERANDS = {
    "out": ("images", "kernel"),
    "images": ("out", "kernel"),
    "kernel": ("images", "out"),
}


def convolve(images: Array, kernel: Array, padding: int) -> Array:
    """Convolve images [n, h, w, c] with a kernel [k, k, c, o], at stride 1."""
    return _find("out", images, kernel, padding, kernel.shape[0])


def kernel_gradient(images: Array, out: Array, padding: int, size: int) -> Array:
    """The gradient of a kernel of this size, given that of the output, `out`."""
    return _find("kernel", images, out, padding, size)


def matmul_precision() -> str:
    """The caller's setting: a parameter of a primitive, which is lowered when it has ended."""
    return jax.config.jax_default_matmul_precision or "default"  # type: ignore[attr-defined]


def _find(find: str, a: Array, b: Array, padding: int, size: int) -> Array:
    options = {"padding": padding, "size": size, "precision": matmul_precision()}
    return _convolution.bind(a, b, find=find, **options)


def _compute(a: Array, b: Array, *, find: str, padding: int, size: int, precision: str) -> Array:
    """Of arrays [n, h, w, c] and [k, k, c, o], or with an axis of tasks before the last."""
    tasks = a.shape[-2] if a.ndim == 5 else 1
    if a.ndim == 5 and tasks == 1:
        # XLA finds cuDNN's own gradient of the images only in a convolution without groups.
        out = _compute(a.squeeze(3), b.squeeze(3), find=find, padding=padding, size=size,
                       precision=precision)  # fmt: skip
        return jnp.expand_dims(out, 3)
    conv = partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=tasks,
        precision=precision,
    )
    pads = [(padding, padding)] * 2
    if find == "images":
        b = jnp.flip(b, (0, 1)).swapaxes(2, -1)
        pads = [(size - 1 - padding, size - 1 - padding)] * 2
    x, y = (z.reshape(*z.shape[:3], -1) for z in (a, b))
    if find == "kernel":
        kernel = jax.ShapeDtypeStruct((size, size, a.shape[-1], y.shape[-1]), a.dtype)
        (out,) = jax.linear_transpose(lambda k: conv(x, k, padding=pads), kernel)(y)
    else:
        out = conv(x, y, padding=pads)
    return out if a.ndim == 4 else out.reshape(*out.shape[:3], tasks, -1)


def _shape(a, b, *, find: str, padding: int, size: int, precision: str):
    if find == "kernel":
        shape = (size, size, a.shape[-1], *a.shape[3:-1], b.shape[-1])
    else:
        grown = (2 * padding - size + 1) * (1 if find == "out" else -1)
        last = b.shape[-1] if find == "out" else b.shape[2]
        shape = (a.shape[0], a.shape[1] + grown, a.shape[2] + grown, *a.shape[3:-1], last)
    return jax.core.ShapedArray(shape, a.dtype)


def _pull(place: int, cotangent, a, b, *, find: str, **options):
    """The gradient of one operand: found from the other one and the cotangent."""
    known = dict(zip(_OPERANDS[find], (a, b), strict=True), **{find: cotangent})
    wanted = _OPERANDS[find][place]
    return _convolution.bind(*(known[x] for x in _OPERANDS[wanted]), find=wanted, **options)


def merged_into_tasks(primitive: Primitive, operands: list[Axis], results: list[Axis]) -> Any:
    """A rule for `vmap`: a mapped axis of length v becomes v times as many tasks.

    `operands` and `results` say of each array where its axis of tasks is, and its rank without it.
    """

    def rule(args, dims, **options):
        length = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
        merged, nested = [], False
        for x, d, (at, rank) in zip(args, dims, operands, strict=True):
            x = jnp.expand_dims(x, at) if d is None else jnp.moveaxis(x, d, at)
            x = jnp.broadcast_to(x, (*x.shape[:at], length, *x.shape[at + 1 :]))
            nested = x.ndim == rank + 2
            merged.append(x.reshape(*x.shape[:at], -1, *x.shape[at + 2 :]) if nested else x)
        outs, several = primitive.bind(*merged, **options), primitive.multiple_results
        found, ats = outs if several else [outs], [at for at, _ in results]
        if nested:
            found = [
                x.reshape(*x.shape[:at], length, -1, *x.shape[at + 1 :])
                for x, at in zip(found, ats, strict=True)
            ]
        return (found, ats) if several else (found[0], ats[0])

    return rule


_convolution.def_impl(
    jax.jit(_convolution.bind, static_argnames=("find", "padding", "size", "precision"))
)
_convolution.def_abstract_eval(_shape)
mlir.register_lowering(_convolution, mlir.lower_fun(_compute, multiple_results=False))
ad.defbilinear(_convolution, partial(_pull, 0), partial(_pull, 1))
batching.primitive_batchers[_convolution] = merged_into_tasks(
    _convolution, [_IMAGES, _IMAGES], [_IMAGES]
)


# ---- operations on single entries, which `vmap` would otherwise transpose to [t, n, h, w, c]

_alongside = Primitive("alongside")


def alongside(x: Array | float, like: Array) -> Array:
    """x, broadcast to the shape of `like`, with a mapped axis at the place where `like` has it."""
    return _alongside.bind(jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape), like)


def _alongside_batched(args, dims):
    (x, like), (own, place) = args, dims
    if place is None:
        place = own
    elif own is None:
        x = jnp.broadcast_to(jnp.expand_dims(x, place), like.shape)
    else:
        x = jnp.moveaxis(x, own, place)
    return _alongside.bind(x, like) if dims[1] is not None else x, place


_alongside.def_impl(lambda x, like: x)
_alongside.def_abstract_eval(lambda x, like: jax.core.ShapedArray(x.shape, x.dtype))
mlir.register_lowering(_alongside, mlir.lower_fun(lambda x, like: x, multiple_results=False))
ad.defjvp(_alongside, lambda t, x, like: _alongside.bind(t, like), None)
ad.primitive_transposes[_alongside] = lambda ct, x, like: [ct, None]
batching.primitive_batchers[_alongside] = _alongside_batched
