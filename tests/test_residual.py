"""The compiled layers of a residual block, against direct convolutions in double precision and
against PyTorch."""

import platform
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from problems import quick_jit
from test_native import compiled, difference, in_a_process, use_compiler

from jaxsparse import nn
from jaxsparse.nn import blocks, native, ops, residual

SLOPE = 0.1
# n, h, w, inputs, outputs. Odd sizes, channels that fill no vector, few inputs, images enough for
# several in a piece and for several shares, and one of a single pixel.
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
    """By NumPy: JAX would compile a program for each shape."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def direct(images, kernel, scale, bias):
    """XLA's own convolution, the norm in two passes and the activation."""
    dims = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dims)
    mean = jnp.mean(y, (0, 1, 2))
    z = (y - mean) / jnp.sqrt(jnp.var(y, (0, 1, 2)) + 1e-5) * scale + bias
    return jnp.where(z >= 0, z, SLOPE * z)


def direct_join(padding, a, b):
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    sums = jnp.where(a + b >= 0, a + b, SLOPE * (a + b))
    return lax.reduce_window(sums, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), pad)


def with_gradients(function, *args):
    """The output and the gradients, from that of the output."""
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
def test_layer_and_its_gradients_are_those_of_a_direct_convolution(sizes):
    args = draw(*sizes)
    assert native.has_few_inputs(args[0]) == (sizes[3] <= 4)
    got, want = native_unit(*args), in_float64(direct, *args)
    assert [x.shape for x in got] == [x.shape for x in want]
    largest = max(np.abs(x).max() for x in want[1:])
    for ours, exact in zip(got, want, strict=True):
        # The kernel's gradient is nearly zero where the norm undoes all that a kernel can do.
        assert np.linalg.norm(ours - exact) < 3e-6 * max(np.linalg.norm(exact), largest)


@compiled
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("shape", POOLED, ids=str)
def test_end_of_a_block_and_its_gradients_are_those_of_its_parts(shape, padding):
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
    """Nothing varies, so that all outputs are the bias, here zero; none of it may be infinite."""
    args = jnp.ones((2, 4, 5, 6)), jnp.zeros((3, 3, 6, 8)), jnp.ones(8), jnp.zeros(8)
    gradient = jnp.ones((2, 4, 5, 8))
    layer = partial(residual.conv_norm, slope=SLOPE, form=form)
    out, *gradients = with_gradients(layer, *args, gradient)
    assert not out.any() and all(np.isfinite(x).all() for x in gradients)
    np.testing.assert_allclose(gradients[-1], 40.0)


@compiled
@pytest.mark.parametrize("sizes", [(3, 9, 8, c, 20, k) for c in (2, 6) for k in (1, 3)], ids=str)
def test_statistics_do_not_cancel(sizes):
    """Images far from zero: without a border, their level is no part of what the norm leaves."""
    args = draw(*sizes, offset=100.0)
    out, *gradients = in_float64(direct, *args)
    got = native_unit(*args)
    assert difference(got[0], out) < 1e-4
    assert all(difference(*pair) < 1e-3 for pair in zip(got[1:], gradients, strict=True))


ALL_SIZES = """
import test_residual
from jaxsparse.nn.native import library
for sizes in test_residual.LAYERS:
    test_residual.test_layer_and_its_gradients_are_those_of_a_direct_convolution(sizes)
for shape in test_residual.POOLED[:3]:
    test_residual.test_end_of_a_block_and_its_gradients_are_those_of_its_parts(shape, 1)
print(library.load().lanes)
"""


@compiled
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("flag, lanes", [("-mno-avx512f", 8), ("-march=x86-64", 4)])
def test_layers_for_shorter_vectors(flag, lanes, monkeypatch, tmp_path):
    use_compiler(monkeypatch, tmp_path, f'exec c++ "$@" {flag}')
    assert in_a_process(ALL_SIZES).split() == [str(lanes).encode()]


# ---- against PyTorch


def block_inputs(n=2, h=5, w=6, inputs=3, outputs=6):
    """Images, then kernel, scale and bias of three layers and of the skip."""
    sizes = [(3, inputs), (3, outputs), (3, outputs), (1, inputs)]
    params = [draw(1, 1, 1, c, outputs, k)[1:4] for k, c in sizes]
    (images,) = normal(8, [(n, h, w, inputs)])
    # In each its own numbers: those of equal shape are drawn equal.
    return [images, *(x * (1 + 0.1 * i) for i, layer in enumerate(params) for x in layer)]


def block(form, padding, images, *params):
    layers = [params[i : i + 3] for i in range(0, 12, 3)]
    conv = partial(residual.conv_norm, form=form)
    y = conv(conv(images, *layers[0], slope=SLOPE), *layers[1], slope=SLOPE)
    ends = conv(y, *layers[2]), conv(images, *layers[3])
    return residual.join(*ends, slope=SLOPE, padding=padding, form=form)


def torch_layer(x, kernel, scale, bias):
    torch = pytest.importorskip("torch")
    y = torch.nn.functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    # PyTorch's own norm would fold the mean into the bias: infinity less infinity.
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)
    unit = (y - mean) / torch.sqrt(variance + 1e-5)
    return unit * scale[:, None, None] + bias[:, None, None]


def torch_block(padding, images, *params):
    f = pytest.importorskip("torch").nn.functional
    layers = [params[i : i + 3] for i in range(0, 12, 3)]
    y = f.leaky_relu(torch_layer(images, *layers[0]), SLOPE)
    y = f.leaky_relu(torch_layer(y, *layers[1]), SLOPE)
    y = torch_layer(y, *layers[2]) + torch_layer(images, *layers[3])
    return f.max_pool2d(f.leaky_relu(y, SLOPE), 2, padding=padding)


def to_torch(x, place):
    """An array in float64 and PyTorch's order of axes: the first is of images."""
    turn = (0, 3, 1, 2) if place == 0 else (3, 2, 0, 1)
    array = np.asarray(x, np.float64)
    return pytest.importorskip("torch").tensor(array.transpose(turn) if x.ndim == 4 else array)


def from_torch(tensors):
    turns = [(0, 2, 3, 1)] + [(2, 3, 1, 0)] * len(tensors)
    return [
        x.detach().numpy().transpose(t if x.dim() == 4 else (0,))
        for x, t in zip(tensors, turns, strict=False)
    ]


def torch_derivatives(function, args):
    """Value, gradient, and a gradient of the gradient by double backward."""
    torch = pytest.importorskip("torch")
    leaves = [to_torch(x, i).requires_grad_() for i, x in enumerate(args)]
    out = function(*leaves).permute(0, 2, 3, 1)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    first = torch.autograd.grad((torch.sin(out) * weights).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [[out.detach().numpy()], from_torch(first), from_torch(second)]


def derivatives(function, args):
    """The same of ours."""
    places = tuple(range(len(args)))

    def scalar(*args):
        out = function(*args)
        return jnp.sum(jnp.sin(out) * jnp.linspace(-1, 2, out.size).reshape(out.shape))

    def slope(*args):
        return sum(jnp.sum(jnp.square(g)) for g in jax.grad(scalar, places)(*args))

    def everything(*args):
        return [function(*args)], jax.grad(scalar, places)(*args), jax.grad(slope, places)(*args)

    return quick_jit(everything)(*args)


FORMS = [pytest.param(form, marks=compiled if form == "native" else ()) for form in residual.FORMS]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k, inputs", [(1, 3), (3, 3), (1, 5), (3, 5)])
def test_layers_and_their_second_derivatives_are_pytorchs(k, inputs, form):
    *args, _ = draw(2, 4, 5, inputs, 6, k)
    layer = partial(residual.conv_norm, slope=SLOPE, form=form)
    leaky = pytest.importorskip("torch").nn.functional.leaky_relu
    want = torch_derivatives(lambda *a: leaky(torch_layer(*a), SLOPE), args)
    check_derivatives(derivatives(layer, args), want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", [0, 1])
def test_a_block_and_its_second_derivatives_are_pytorchs(padding, form):
    args = block_inputs()
    want = torch_derivatives(partial(torch_block, padding), args)
    check_derivatives(derivatives(partial(block, form, padding), args), want)


def check_derivatives(got, want):
    for ours, theirs, limit in zip(got, want, (1e-5, 1e-4, 1e-3), strict=True):
        assert all(difference(*pair) < limit for pair in zip(ours, theirs, strict=True))


# Arguments of a layer, the gradient last, and a place in each.
PLACES = [(0, (1, 2, 3, 0)), (1, (0, 0, 0, 2)), (2, (1,)), (3, (1,)), (4, (0, 0, 1, 1))]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k, inputs", [(1, 3), (3, 3), (1, 5), (3, 5)])
def test_nan_and_infinity_go_where_they_go_in_pytorch(k, inputs, form):
    args = draw(2, 5, 4, inputs, 6, k)
    torch = pytest.importorskip("torch")
    layer = partial(residual.conv_norm, slope=SLOPE, form=form)
    both = quick_jit(partial(with_gradients, layer))

    def in_torch(*args):
        leaves = [to_torch(x, i).requires_grad_() for i, x in enumerate(args[:-1])]
        out = torch.nn.functional.leaky_relu(torch_layer(*leaves), SLOPE)
        out.backward(to_torch(args[-1], 0))
        return [*from_torch([out]), *from_torch([x.grad for x in leaves])]

    def pairs(which, change):
        changed = [change(a) if i == which else a for i, a in enumerate(args)]
        return zip(both(*changed), in_torch(*changed), strict=True)

    for which, place in PLACES:
        for got, want in pairs(which, lambda a, p=place: a.at[p].set(np.nan)):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want), f"argument {which}")
        for value in (np.inf, -np.inf):
            for got, want in pairs(which, lambda a, v=value, p=place: a.at[p].set(v)):
                # Infinity less infinity may be taken here or there.
                assert np.all(np.isfinite(want) | ~np.isfinite(got)), (which, value)
    for which in (0, 1):  # the square of a deviation of 1e25 is no float32
        (got, want), *_ = pairs(which, lambda a: 1e25 * a)
        assert np.all(np.isnan(got)) or difference(got, want) < 1e-5


# ---- in JAX's transformations


@compiled
def test_a_block_of_each_task_under_vmap_and_map_to_the_bit():
    """Also where the block is the body of a loop."""
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
    # The images' gradient is XLA's where inputs are few.
    arrays += [out, *others, *([d_images] if sizes[3] > 4 else [])]
*args, gradient = t.join_inputs((9, 20, 13, 16), 1)
join = partial(t.residual.join, slope=0.1, padding=1, form="native")
arrays += t.with_gradients(join, *args, gradient)
for x in arrays:
    sys.stdout.write(memoryview(jax.device_get(x)).tobytes().hex())
"""


@compiled
def test_bits_do_not_depend_on_the_number_of_threads():
    one, three = (in_a_process(BITS, PJRT_NPROC=str(threads)) for threads in (1, 3))
    assert one == three != b""


@compiled
def test_the_gradient_of_a_first_layers_images_is_not_computed_unless_asked_for():
    args = draw(2, 8, 8, 3, 6, 3)

    def operations(places):
        grad = jax.grad(lambda *a: jnp.sum(jnp.sin(unit(*a))), places)
        return jax.jit(grad).lower(*args[:-1]).compile().as_text()

    assert " dot(" not in operations((1, 2, 3))
    assert " dot(" in operations((0, 1, 2, 3))


# ---- the choice


@compiled
@pytest.mark.parametrize("form", residual.FORMS)
def test_resnet12_is_made_with_the_form_that_is_asked_for(form):
    shape = (9, 8, 2)
    model = nn.resnet12(3, (2, 4, 4, 8), shape, blocks=form)
    params, images = model.init(jax.random.key(0)), jnp.ones((2, *shape))
    calls = str(jax.make_jaxpr(model.apply)(params, images)).count("ffi_call[")
    assert calls == (16 + 3 if form == "native" else 0)


@compiled
def test_resnet12_is_the_same_in_both_forms():
    shape = (20, 18, 3)
    (images,) = normal(1, [(5, *shape)])

    def found(form):
        model = nn.resnet12(3, (4, 6, 8, 20), shape, blocks=form)
        params = model.init(jax.random.key(0))
        loss = lambda p: jnp.sum(jnp.sin(model.apply(p, images)))  # noqa: E731
        return quick_jit(jax.value_and_grad(loss))(params)

    for ours, other in zip(*(jax.tree.leaves(found(form)) for form in residual.FORMS), strict=True):
        np.testing.assert_allclose(ours, other, rtol=0, atol=1e-4 * np.abs(other).max())


def test_without_a_compiler_resnet12_is_xlas(monkeypatch):
    reason = "there is no C++ compiler"
    monkeypatch.setattr(native, "why_not", lambda: reason)
    monkeypatch.setattr(blocks, "default_platform", lambda: "cpu")
    with pytest.raises(ValueError, match="'native' cannot be had, as there is no C"):
        nn.resnet12(blocks="native")
    model = nn.resnet12(3, (2, 2, 2, 4), (8, 8, 1))
    params, images = model.init(jax.random.key(0)), jnp.ones((2, 8, 8, 1))
    assert "ffi_call" not in str(jax.make_jaxpr(model.apply)(params, images))


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
def test_layers_refuse_what_does_not_fit(images, kernel, scale, form, message):
    args = [jnp.zeros(s) for s in (images, kernel, scale, (4,))]
    with pytest.raises(ValueError, match=message):
        residual.conv_norm(*args, form=form)


def test_a_kernel_of_another_size_is_xlas():
    *args, _ = draw(2, 6, 5, 5, 6, 5)
    np.testing.assert_array_equal(unit(*args), residual.conv_norm(*args, slope=SLOPE, form="xla"))


@pytest.mark.parametrize(
    "change", [{"padding": 2}, {"slope": -1.0}, {"b": jnp.zeros((2, 5, 5, 4))}]
)
def test_ends_of_blocks_refuse_what_does_not_fit(change):
    args = {"a": jnp.zeros((2, 5, 5, 3)), "b": jnp.zeros((2, 5, 5, 3)), "slope": 0.1, "padding": 0}
    with pytest.raises(ValueError, match="a, b: got shapes"):
        residual.join(**(args | change))


def test_conv_norm_is_its_parts_to_the_bit():
    *args, _ = draw(2, 6, 5, 5, 6, 3)
    y = ops.batch_norm(ops.conv(args[0], args[1]), *args[2:])
    np.testing.assert_array_equal(
        residual.conv_norm(*args, slope=0.2, form="xla"), jax.nn.leaky_relu(y, 0.2)
    )
