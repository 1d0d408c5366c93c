"""The compiled layers of a residual block, against direct convolutions in double precision."""

import platform
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from problems import quick_jit
from test_native import compiled, difference, in_a_process, use_compiler

from jaxsparse.nn import native, ops, residual

SLOPE = 0.1
# n, h, w, inputs, outputs: odd sizes, channels that do not fill a vector, few inputs, several
# images per piece, several shares, and images of a single pixel.
SIZES = [
    (2, 4, 4, 1, 9),
    (2, 7, 6, 3, 37),
    (9, 20, 13, 4, 16),
    (2, 1, 5, 5, 3),
    (5, 1, 1, 16, 8),
    (2, 7, 4, 6, 17),
    (14, 3, 3, 20, 33),
    (12, 14, 13, 16, 16),
]
LAYERS = [(*sizes, k) for sizes in SIZES for k in (1, 3)]
POOLED = [(2, 7, 5, 9), (3, 4, 4, 16), (9, 6, 7, 33), (1, 1, 2, 3)]


def draw(n, h, w, inputs, outputs, k, offset=0.0):
    """Images, kernel, scale of both signs, bias, and a gradient of the output."""
    shapes = [(n, h, w, inputs), (k, k, inputs, outputs), (outputs,), (outputs,)]
    shapes.append((n, h, w, outputs))
    images, *others = normal(3, shapes)
    return images + offset, *others


def normal(seed, shapes):
    """Drawn with NumPy, as JAX would compile a program for each shape."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def direct(images, kernel, scale, bias):
    """XLA's convolution, the norm in two passes and the activation."""
    dims = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dims)
    mean, variance = (f(y, (0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
    scale, bias = (ops.of_rank(4, x) for x in (scale, bias))
    z = (y - mean) / jnp.sqrt(variance + 1e-5) * scale + bias
    return jnp.where(z >= 0, z, SLOPE * z)


def direct_join(padding, a, b):
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    sums = jnp.where(a + b >= 0, a + b, SLOPE * (a + b))
    return lax.reduce_window(sums, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), pad)


def with_gradients(function, *args):
    """The output, and the gradients of `args`; the last argument is that of the output."""
    *args, gradient = args
    out, pull = jax.vjp(function, *args)
    return [out, *pull(gradient)]


def in_float64(function, *args):
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in args]
        return [np.asarray(x) for x in quick_jit(partial(with_gradients, function))(*wide)]


unit = partial(residual.conv_norm, slope=SLOPE, form="native")
native_unit = quick_jit(partial(with_gradients, unit))


def join_inputs(shape, padding):
    n, h, w, c = shape
    size = (n, (h + 2 * padding) // 2, (w + 2 * padding) // 2, c)
    return normal(4, (shape, shape, size))


@compiled
@pytest.mark.parametrize("sizes", LAYERS, ids=str)
def test_layer_and_its_gradients_match_a_direct_convolution(sizes):
    args = draw(*sizes)
    assert native.has_few_inputs(args[0]) == (sizes[3] <= 4)
    got, want = native_unit(*args), in_float64(direct, *args)
    assert [x.shape for x in got] == [x.shape for x in want]
    largest = max(np.abs(x).max() for x in want[1:])
    for ours, exact in zip(got, want, strict=True):
        # The gradient of the kernel is almost zero if the norm cancels every change of the kernel.
        assert np.linalg.norm(ours - exact) < 3e-6 * max(np.linalg.norm(exact), largest)


@compiled
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("shape", POOLED, ids=str)
def test_join_and_its_gradients_match_its_parts(shape, padding):
    if min(shape[1:3]) + 2 * padding < 2:
        with pytest.raises(ValueError, match=r"a: got shape \(1, 1, 2, 3\)"):
            residual.join(jnp.ones(shape), jnp.ones(shape), slope=SLOPE, form="native")
        return
    args = join_inputs(shape, padding)
    join = partial(residual.join, slope=SLOPE, padding=padding, form="native")
    want = in_float64(partial(direct_join, padding), *args)
    for got, exact in zip(jax.jit(partial(with_gradients, join))(*args), want, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-6)


@compiled
def test_ties_and_nan_in_a_window_go_to_the_first():
    a = jnp.array([[1.0, 1.0, -2.0, -2.0, 5.0, jnp.nan], [0.0, 1.0, -2.0, -3.0, jnp.nan, 9.0]])
    a = jnp.tile(a[None, :, :, None], (1, 1, 1, 20))
    want = jnp.array([[1.0, 0.0, SLOPE, 0.0, 0.0, SLOPE], [0.0] * 6])
    for form in residual.FORMS:
        join = partial(residual.join, slope=SLOPE, form=form)
        out, d, _ = with_gradients(join, a, 0 * a, jnp.ones((1, 1, 3, 20)))
        np.testing.assert_allclose(out[0, 0, :, 7], [1.0, -2 * SLOPE, np.nan])
        np.testing.assert_allclose(d[0, :, :, 7], want)


@compiled
@pytest.mark.parametrize("form", residual.FORMS)
def test_a_layer_of_equal_inputs_has_the_derivative_of_the_upper_side(form):
    """All outputs are equal to the bias, which is zero. All gradients must be finite."""
    args = jnp.ones((2, 4, 5, 6)), jnp.zeros((3, 3, 6, 8)), jnp.ones(8), jnp.zeros(8)
    gradient = jnp.ones((2, 4, 5, 8))
    layer = partial(residual.conv_norm, slope=SLOPE, form=form)
    out, *gradients = with_gradients(layer, *args, gradient)
    assert not out.any() and all(np.isfinite(x).all() for x in gradients)
    np.testing.assert_allclose(gradients[-1], 40.0)


@compiled
@pytest.mark.parametrize("sizes", [(3, 9, 8, c, 20, k) for c in (2, 6) for k in (1, 3)], ids=str)
def test_statistics_do_not_cancel(sizes):
    """The mean of the images is large; without a border, the norm removes it completely."""
    args = draw(*sizes, offset=100.0)
    out, *gradients = in_float64(direct, *args)
    got = native_unit(*args)
    assert difference(got[0], out) < 1e-4
    assert all(difference(*pair) < 1e-3 for pair in zip(got[1:], gradients, strict=True))


ALL_SIZES = """
import test_residual
from jaxsparse.nn.native import library
for sizes in test_residual.LAYERS:
    test_residual.test_layer_and_its_gradients_match_a_direct_convolution(sizes)
for shape in test_residual.POOLED[:3]:
    test_residual.test_join_and_its_gradients_match_its_parts(shape, 1)
print(library.load().lanes)
"""


@compiled
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("flag, lanes", [("-mno-avx512f", 8), ("-march=x86-64", 4)])
def test_layers_for_shorter_vectors(flag, lanes, monkeypatch, tmp_path):
    use_compiler(monkeypatch, tmp_path, f'exec c++ "$@" {flag}')
    assert in_a_process(ALL_SIZES).split() == [str(lanes).encode()]


def block_inputs(n=2, h=5, w=6, inputs=3, outputs=6):
    """Images, then kernel, scale and bias of three layers and of the skip."""
    sizes = [(3, inputs), (3, outputs), (3, outputs), (1, inputs)]
    params = [draw(1, 1, 1, c, outputs, k)[1:4] for k, c in sizes]
    (images,) = normal(8, [(n, h, w, inputs)])
    # Arrays of equal shape are drawn equal, so the layers are made different.
    return [images, *(x * (1 + 0.1 * i) for i, layer in enumerate(params) for x in layer)]


def block(form, padding, images, *params):
    layers = [params[i : i + 3] for i in range(0, 12, 3)]
    conv = partial(residual.conv_norm, form=form)
    y = conv(conv(images, *layers[0], slope=SLOPE), *layers[1], slope=SLOPE)
    ends = conv(y, *layers[2]), conv(images, *layers[3])
    return residual.join(*ends, slope=SLOPE, padding=padding, form=form)


# ---- JAX's transformations


@compiled
def test_blocks_under_vmap_map_and_scan_have_the_same_bits():
    """The tasks of a batch, compared with one call per task."""
    args = [jnp.stack([x * (1 + 0.1 * i) for i in range(3)]) for x in block_inputs(2, 7, 6, 5, 20)]

    def slopes(*args):
        places = tuple(range(len(args)))
        return jax.grad(lambda *a: jnp.sum(jnp.sin(block("native", 1, *a))), places)(*args)

    def in_a_loop(*args):
        return lax.scan(lambda carry, x: (carry, slopes(*x)), None, args)[1]

    one = jax.jit(slopes)
    want = [
        jnp.stack(x) for x in zip(*(one(*task) for task in zip(*args, strict=True)), strict=True)
    ]
    for several in (jax.vmap(slopes), lambda *a: lax.map(lambda x: slopes(*x), a), in_a_loop):
        jax.tree.map(np.testing.assert_array_equal, list(jax.jit(several)(*args)), want)


@compiled
def test_half_precision_is_computed_in_single():
    *args, _ = draw(2, 6, 5, 5, 6, 3)
    half = [x.astype(jnp.bfloat16) for x in args]
    single = [x.astype(jnp.float32) for x in half]
    out = unit(*half)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, unit(*single).astype(jnp.bfloat16))
    gradients = jax.grad(lambda *a: jnp.sum(jnp.sin(unit(*a))), (0, 1, 2, 3))(*half)
    assert {x.dtype for x in gradients} == {jnp.dtype(jnp.bfloat16)}
    a, b = half[0], half[0][::-1]
    joined = residual.join(a, b, slope=SLOPE, form="native")
    assert joined.dtype == jnp.bfloat16
    wide = residual.join(a.astype(jnp.float32), b.astype(jnp.float32), slope=SLOPE, form="native")
    np.testing.assert_array_equal(joined, wide.astype(jnp.bfloat16))


BITS = """
import jax, sys
from functools import partial
import jax.numpy as jnp
import test_residual as t
arrays = []
for sizes in t.LAYERS[-2:] + t.LAYERS[4:6]:
    out, d_images, *others = t.native_unit(*t.draw(*sizes))
    # With few inputs, XLA computes the gradient of the images.
    arrays += [out, *others, *([d_images] if sizes[3] > 4 else [])]
*args, gradient = t.join_inputs((9, 20, 13, 16), 1)
join = partial(t.residual.join, slope=0.1, padding=1, form="native")
arrays += t.with_gradients(join, *args, gradient)
for x in arrays:
    sys.stdout.write(memoryview(jax.device_get(x)).tobytes().hex())
"""


@compiled
@pytest.mark.slow
def test_bits_do_not_depend_on_the_number_of_threads():
    one, three = (in_a_process(BITS, PJRT_NPROC=str(threads)) for threads in (1, 3))
    assert one == three != b""


@compiled
def test_the_gradient_of_a_first_layers_images_is_computed_only_on_request():
    args = draw(2, 8, 8, 3, 6, 3)

    def operations(places):
        grad = jax.grad(lambda *a: jnp.sum(jnp.sin(unit(*a))), places)
        return jax.jit(grad).lower(*args[:-1]).compile().as_text()

    assert " dot(" not in operations((1, 2, 3))
    assert " dot(" in operations((0, 1, 2, 3))


# ---- errors and forms


@pytest.mark.parametrize(
    "images, kernel, scale, form, message",
    [
        ((5, 5, 3), (3, 3, 3, 4), (4,), "xla", r"images: got shape \(5, 5, 3\)"),
        ((2, 5, 5, 3), (2, 2, 3, 4), (4,), "xla", r"kernel: got shape \(2, 2, 3, 4\)"),
        ((2, 5, 5, 3), (3, 3, 2, 4), (4,), "xla", r"kernel: got shape \(3, 3, 2, 4\)"),
        ((2, 5, 5, 3), (3, 3, 3, 4), (3,), "xla", r"scale: got shape \(3,\)"),
        ((2, 5, 5, 3), (3, 3, 3, 4), (4,), "fast", "form: got 'fast'"),
    ],
)
def test_layers_refuse_wrong_shapes_and_forms(images, kernel, scale, form, message):
    args = [jnp.zeros(s) for s in (images, kernel, scale, (4,))]
    with pytest.raises(ValueError, match=message):
        residual.conv_norm(*args, form=form)


def test_kernels_of_other_sizes_use_xla():
    *args, _ = draw(2, 6, 5, 5, 6, 5)
    np.testing.assert_array_equal(unit(*args), residual.conv_norm(*args, slope=SLOPE, form="xla"))


@pytest.mark.parametrize(
    "change", [{"padding": 2}, {"slope": -1.0}, {"b": jnp.zeros((2, 5, 5, 4))}]
)
def test_join_refuses_wrong_shapes_padding_and_slope(change):
    args = {"a": jnp.zeros((2, 5, 5, 3)), "b": jnp.zeros((2, 5, 5, 3)), "slope": 0.1, "padding": 0}
    with pytest.raises(ValueError, match="a, b: got shapes"):
        residual.join(**(args | change))


def test_conv_norm_has_the_bits_of_its_parts():
    *args, _ = draw(2, 6, 5, 5, 6, 3)
    y = ops.batch_norm(ops.conv(args[0], args[1]), *args[2:])
    np.testing.assert_array_equal(
        residual.conv_norm(*args, slope=0.2, form="xla"), jax.nn.leaky_relu(y, 0.2)
    )
