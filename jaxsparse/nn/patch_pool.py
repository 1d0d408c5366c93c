"""Convolution by patches, ReLU and 2x2 max-pooling as one operation, for few input channels.

    out = relu(max_p P_p K),  p = 0..3: the places of a pooling window,

where P_p are the patches of the images at place p of every window, [n, h, w, k], and K [k, o] is
the kernel. With the kernels in Pallas, the output of the convolution, which is four times as large
as `out`, is never in memory, and the gradient of K reads only the patches and the gradient of
`out`.

`vmap` over tasks keeps the tasks next to the channels, as in `grouped`.
"""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxsparse.nn.grouped import matmul_precision, merged_into_tasks

PLACES = 4
CUT = 4  # instead of a place, where ReLU gives zero and so stops the gradient

# Given the places, the output is linear in the patches and in the kernel. Each of the three is
# found from the other two, as the derivative, and the derivatives of that are again of this kind.
_OPERANDS = {
    "out": ("patches", "kernel"),
    "kernel": ("patches", "out"),
    "patches": ("kernel", "out"),
}
# Where the axis of tasks is, and the rank without it.
_TASKS = {"patches": (0, 5), "kernel": (0, 2), "out": (3, 4), "place": (3, 4)}

_pool = Primitive("patch_pool")
_pool.multiple_results = True
_pick = Primitive("patch_pick")


def patch_pool(patches: Array, kernel: Array, *, pallas: bool) -> Array:
    """The output [n, h, w, o] for patches [4, n, h, w, k] and a kernel [k, o].

    Of equal entries of a window, the first has the gradient. NaN counts as the largest. If `pallas`
    is True, NVIDIA GPUs use the kernels in Pallas; `jax.export` refuses those.
    """
    return _pool.bind(patches, kernel, precision=matmul_precision(), pallas=pallas)[0]


@functools.cache
def has_kernels() -> bool:
    """Whether JAX has the backend of Pallas that the kernels are for; it is deprecated in 0.12."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


# ---- with XLA's operations


def _product(patches: Array, kernel: Array, precision: str) -> Array:
    return jnp.einsum("tpnhwk,tko->pnhwto", patches, kernel, precision=precision)


def _pool_in_xla(
    patches: Array, kernel: Array, *, precision: str, pallas: bool = False
) -> tuple[Array, Array]:
    if kernel.ndim == 2:
        outs = _pool_in_xla(patches[None], kernel[None], precision=precision)
        return tuple(x.squeeze(3) for x in outs)  # type: ignore[return-value]
    best, *others = _product(patches, kernel, precision)
    place = jnp.zeros(best.shape, jnp.uint8)
    for i, y in enumerate(others, 1):
        ahead = (y > best) | (jnp.isnan(y) & ~jnp.isnan(best))
        best, place = jnp.where(ahead, y, best), jnp.where(ahead, jnp.uint8(i), place)
    return jnp.maximum(best, 0), jnp.where(best <= 0, jnp.uint8(CUT), place)


def _pick_in_xla(
    a: Array, b: Array, place: Array, *, find: str, precision: str, pallas: bool = False
) -> Array:
    if place.ndim == 4:
        given = (
            jnp.expand_dims(x, _TASKS[kind][0])
            for x, kind in zip((a, b, place), (*_OPERANDS[find], "place"), strict=True)
        )
        return _pick_in_xla(*given, find=find, precision=precision).squeeze(_TASKS[find][0])
    here = jnp.stack([place == i for i in range(PLACES)])
    if find == "out":
        return jnp.sum(jnp.where(here, _product(a, b, precision), 0), 0)
    spread = jnp.where(here, jnp.expand_dims(b, 0), 0)
    terms = "tpnhwk,pnhwto->tko" if find == "kernel" else "tko,pnhwto->tpnhwk"
    return jnp.einsum(terms, a, spread, precision=precision)


# ---- on CUDA GPUs


def _pool_on_cuda(
    patches: Array, kernel: Array, *, precision: str, pallas: bool
) -> tuple[Array, Array]:
    if not (pallas and has_kernels()):
        return _pool_in_xla(patches, kernel, precision=precision)
    if kernel.ndim == 2:
        outs = _pool_on_cuda(patches[None], kernel[None], precision=precision, pallas=True)
        return tuple(x.squeeze(3) for x in outs)  # type: ignore[return-value]
    from jaxsparse.nn import patch_pool_kernels

    t, _, n, h, w, k = patches.shape
    rows = patches.reshape(t, PLACES, n * h * w, k)
    outs = patch_pool_kernels.pool(rows, kernel, precision=precision)
    return tuple(x.reshape(n, h, w, t, -1) for x in outs)  # type: ignore[return-value]


def _pick_on_cuda(
    a: Array, b: Array, place: Array, *, find: str, precision: str, pallas: bool
) -> Array:
    if find != "kernel" or not (pallas and has_kernels()):
        return _pick_in_xla(a, b, place, find=find, precision=precision)
    if place.ndim == 4:
        given = a[None], b[:, :, :, None], place[:, :, :, None]
        return _pick_on_cuda(*given, find=find, precision=precision, pallas=True)[0]
    from jaxsparse.nn import patch_pool_kernels

    t, _, n, h, w, k = a.shape
    rows = (x.reshape(n * h * w, t, -1) for x in (b, place))
    return patch_pool_kernels.kernel_gradient(
        a.reshape(t, PLACES, n * h * w, k), *rows, precision=precision
    )


# ---- rules


def _shape(find: str, *given: Array) -> tuple[int, ...]:
    """The shape of what is found from two others, given in the order of `_OPERANDS`."""
    a, b = (x.shape for x in given)
    if find == "out":
        return (*a[-4:-1], *b[:-2], b[-1])
    if find == "kernel":
        return (*a[:-5], a[-1], b[-1])
    return (*a[:-2], PLACES, *b[:3], a[-2])


def _pool_shapes(patches: Array, kernel: Array, **_: Any):
    shape = _shape("out", patches, kernel)
    return [jax.core.ShapedArray(shape, x) for x in (patches.dtype, jnp.dtype(jnp.uint8))]


def _pool_jvp(primals, tangents, *, precision: str, pallas: bool):
    options = {"precision": precision, "pallas": pallas}
    out, place = _pool.bind(*primals, **options)
    patches, kernel = primals
    operands = (tangents[0], kernel), (patches, tangents[1])
    terms = [
        _pick.bind(*pair, place, find="out", **options)
        for pair, tangent in zip(operands, tangents, strict=True)
        if not isinstance(tangent, ad.Zero)
    ]
    return (out, place), (sum(terms[1:], terms[0]), ad.Zero(jax.typeof(place).to_tangent_aval()))


def _pick_pull(cotangent, a, b, place, *, find: str, **options):
    """The gradient of the operand that is not known."""
    known = {find: cotangent}
    for kind, x in zip(_OPERANDS[find], (a, b), strict=True):
        if ad.is_undefined_primal(x):
            wanted = kind
        else:
            known[kind] = x
    operands = (known[kind] for kind in _OPERANDS[wanted])
    found = _pick.bind(*operands, place, find=wanted, **options)
    return [found if ad.is_undefined_primal(x) else None for x in (a, b)] + [None]


def _pick_batched(args, dims, *, find: str, **options):
    operands = [_TASKS[kind] for kind in (*_OPERANDS[find], "place")]
    return merged_into_tasks(_pick, operands, [_TASKS[find]])(args, dims, find=find, **options)


def _pick_shape(a, b, place, *, find: str, **_: Any):
    return jax.core.ShapedArray(_shape(find, a, b), a.dtype)


_pool.def_impl(jax.jit(_pool.bind, static_argnames=("precision", "pallas")))
_pool.def_abstract_eval(_pool_shapes)
ad.primitive_jvps[_pool] = _pool_jvp
batching.primitive_batchers[_pool] = merged_into_tasks(
    _pool, [_TASKS["patches"], _TASKS["kernel"]], [_TASKS["out"], _TASKS["place"]]
)

_pick.def_impl(jax.jit(_pick.bind, static_argnames=("find", "precision", "pallas")))
_pick.def_abstract_eval(_pick_shape)
ad.defjvp(
    _pick,
    lambda t, a, b, place, **options: _pick.bind(t, b, place, **options),
    lambda t, a, b, place, **options: _pick.bind(a, t, place, **options),
    None,
)
ad.primitive_transposes[_pick] = _pick_pull
batching.primitive_batchers[_pick] = _pick_batched

for _primitive, _here, _on_cuda in (
    (_pool, _pool_in_xla, _pool_on_cuda),
    (_pick, _pick_in_xla, _pick_on_cuda),
):
    _several = _primitive.multiple_results
    mlir.register_lowering(_primitive, mlir.lower_fun(_here, multiple_results=_several))
    mlir.register_lowering(
        _primitive, mlir.lower_fun(_on_cuda, multiple_results=_several), platform="cuda"
    )
