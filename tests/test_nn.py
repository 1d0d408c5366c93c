"""The networks and their operations, against XLA's own and against PyTorch."""

import collections
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from jax import lax

import jaxsparse
from jaxsparse import nn
from jaxsparse.nn import block_forms, blocks, ops, winograd

FORMS = [form for form in blocks.FORMS if form != "pallas"]  # on the CPU, that is "xla"
KEYS = jax.random.split(jax.random.key(0), 8)


def close(got, want, tolerance=1e-5):
    """Every leaf is equal up to a fraction of its largest wanted entry."""
    leaves, other = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(leaves) == len(other)
    for a, b in zip(leaves, other, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-6))


def quick(f):
    """Compile to run once: with XLA's passes, without optimisation of machine code."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def derivatives(f, *args):
    """Value, gradient and second derivative of a scalar function of f."""
    spots = tuple(range(len(args)))

    def scalar(*args):
        y = f(*args)
        # Odd weights, so that no symmetry hides a transposed or flipped axis.
        return jnp.sum(jnp.sin(y) * jnp.linspace(-1, 2, y.size).reshape(y.shape))

    def slope(*args):
        return sum(jnp.sum(jnp.square(g)) for g in jax.grad(scalar, spots)(*args))

    def everything(*args):
        return f(*args), jax.grad(scalar, spots)(*args), jax.grad(slope, spots)(*args)

    return quick(everything)(*args)


def xla_conv(images, kernel, stride=1, padding=1):
    pad = ((padding, padding), (padding, padding))
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (stride, stride), pad, dimension_numbers=dims)


def xla_pool(x, padding=0):
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), pad)


def two_pass_norm(x, scale, bias):
    mean = jnp.mean(x, (0, 1, 2), keepdims=True)
    var = jnp.mean(jnp.square(x - mean), (0, 1, 2), keepdims=True)
    scale, bias = (p.reshape(1, 1, 1, -1) for p in (scale, bias))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def plain_block(images, kernel, scale, bias):
    return xla_pool(jax.nn.relu(two_pass_norm(xla_conv(images, kernel), scale, bias)))


def block_inputs(h=6, w=5, inputs=3, outputs=8, n=2):
    shapes = [(n, h, w, inputs), (3, 3, inputs, outputs), (outputs,), (outputs,)]
    return [jax.random.normal(k, s) for k, s in zip(KEYS, shapes, strict=False)]


CONVS = [
    ("winograd", 3, 1, 1),
    ("patches", 3, 1, 1),
    ("patches", 3, 2, 1),
    ("patches", 3, 1, 2),
    ("patches", 1, 1, 0),
    ("patches", 1, 2, 0),
    ("patches", 2, 2, 1),
    ("patches", 5, 1, 2),
]


@pytest.mark.parametrize(
    "form, size, stride, padding, h, w",
    [
        *((*conv, 7, 4) for conv in CONVS),
        *((*conv, 2, 5) for conv in CONVS[:2]),
        *(pytest.param(*conv, 2, 5, marks=pytest.mark.slow) for conv in CONVS[2:]),
    ],
)
def test_conv_matches_xla(form, size, stride, padding, h, w):
    images = jax.random.normal(KEYS[0], (2, h, w, 3))
    kernel = jax.random.normal(KEYS[1], (size, size, 3, 4))
    got = derivatives(
        lambda x, k: ops.conv(x, k, stride=stride, padding=padding, form=form), images, kernel
    )
    close(got, derivatives(lambda x, k: xla_conv(x, k, stride, padding), images, kernel))


@pytest.mark.parametrize(
    "n, h, w, pieces",
    [
        (3, 27, 30, 3),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in ((2, 30, 29, 2), (3, 9, 9, 1))),
    ],
)
def test_winograd_on_pieces_of_a_batch(n, h, w, pieces):
    images = jax.random.normal(KEYS[0], (n, h, w, 3))
    kernel = jax.random.normal(KEYS[1], (3, 3, 3, 4))
    assert winograd._pieces(images) == pieces
    got = derivatives(lambda x, k: ops.conv(x, k, form="winograd"), images, kernel)
    # A sum over more positions than elsewhere: float32 is less precise.
    close(got, derivatives(xla_conv, images, kernel), 1e-4)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core: XLA divides nothing")
def test_sums_of_a_piece_are_not_divided_among_cores():
    def divided(rows):
        four = [jax.ShapeDtypeStruct((rows, 64), jnp.float32)] * 4
        compiled = jax.jit(lambda a, b, c, d: a - b + c - d).lower(*four).compile()
        return "outer_dimension_partitions" in compiled.as_text()

    rows = winograd.undivided_rows(64)
    assert not divided(rows) and divided(rows + 1)
    # 245 tiles instead of 490.
    assert winograd._pieces(jax.ShapeDtypeStruct((50, 14, 14, 64), jnp.float32)) == 10


@pytest.mark.parametrize("form", ["winograd", "patches"])
@pytest.mark.slow
def test_conv_with_one_kernel_per_task(form):
    images = jax.random.normal(KEYS[0], (3, 2, 5, 6, 3))
    kernels = jax.random.normal(KEYS[1], (3, 3, 3, 3, 4))
    got = derivatives(jax.vmap(lambda x, k: ops.conv(x, k, form=form)), images, kernels)
    each = [xla_conv(x, k) for x, k in zip(images, kernels, strict=True)]
    close(got[0], jnp.stack(each))
    loop = derivatives(
        lambda x, k: jnp.stack([xla_conv(*pair) for pair in zip(x, k, strict=True)]),
        images,
        kernels,
    )
    close(got, loop)


def test_conv_in_half_precision():
    images = jax.random.normal(KEYS[0], (2, 6, 6, 3), jnp.bfloat16)
    kernel = jax.random.normal(KEYS[1], (3, 3, 3, 4), jnp.bfloat16)
    for form in ("winograd", "patches"):
        out = ops.conv(images, kernel, form=form)
        assert out.dtype == jnp.bfloat16
        close(out, xla_conv(images.astype(jnp.float32), kernel.astype(jnp.float32)), 1e-2)


def test_split_and_join_are_inverse():
    x = jax.random.normal(KEYS[0], (2, 6, 4, 3))
    np.testing.assert_array_equal(winograd.join(winograd.split(x), 6, 4), x)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_batch_norm(offset):
    """The offset tests cancellation: a mean far larger than the standard deviation."""
    x = offset + jax.random.normal(KEYS[0], (3, 4, 5, 6))
    scale, bias = jax.random.normal(KEYS[1], (2, 6))
    wide = [np.asarray(a, np.float64) for a in (x, scale, bias)]
    mean, var = wide[0].mean((0, 1, 2)), wide[0].var((0, 1, 2))
    want = (wide[0] - mean) / np.sqrt(var + 1e-5) * wide[1] + wide[2]
    close(ops.batch_norm(x, scale, bias), want, 1e-5 if offset == 0 else 1e-4)
    if offset == 0:
        args = (x, scale, bias)
        close(derivatives(ops.batch_norm, *args), derivatives(two_pass_norm, *args), 2e-5)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("h, w", [(7, 4)])
def test_max_pool_matches_xla(h, w, padding):
    x = jax.random.normal(KEYS[0], (2, h, w, 3))
    got = derivatives(lambda x: ops.max_pool(x, padding=padding), x)
    close(got, derivatives(lambda x: xla_pool(x, padding), x))


def test_pooling_gives_ties_to_the_first():
    x = jnp.array([[5.0, 5.0, 1.0, 2.0], [5.0, 5.0, 2.0, 2.0]]).reshape(1, 2, 4, 1)
    want = jnp.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).reshape(1, 2, 4, 1)
    np.testing.assert_array_equal(jax.grad(lambda x: ops.max_pool(x).sum())(x), want)


def test_pooling_treats_nan_as_the_largest():
    for place in range(4):
        x = jnp.array([3.0, 1.0, 7.0, jnp.inf]).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(ops.max_pool(x)).all()
        hit = jax.grad(lambda x: ops.max_pool(x).sum())(x).ravel()
        np.testing.assert_array_equal(hit, jnp.arange(4) == place)


def test_norm_of_a_variance_that_overflows_is_nan():
    x = jnp.array([[1e25, 1.0], [-1e25, 2.0]])
    got = ops.batch_norm(x, jnp.ones(2), jnp.zeros(2))
    np.testing.assert_array_equal(jnp.isnan(got), [[True, False]] * 2)


@pytest.mark.parametrize("form", FORMS)
def test_block_gives_ties_to_the_first(form):
    """Columns in equal pairs make every window a tie of two."""
    column = jnp.repeat(jnp.array([1.0, -2.0, 3.0]), 2)
    images = jnp.broadcast_to(column, (1, 6, 6))[..., None]
    # The kernel looks at one pixel only, so that the output ties where the input does.
    kernel = jnp.zeros((3, 3, 1, 16)).at[1, 1].set(1.0)
    ones = jnp.ones(16)

    def slope(form):
        def scalar(images):
            # Images get a gradient through dz alone: the weight on all windows is the same.
            return jnp.sum(blocks.conv_norm_pool(images, kernel, ones, ones, form=form))

        return quick(jax.grad(scalar))(images)

    torch = pytest.importorskip("torch")
    x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).requires_grad_()
    k = torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1)
    y = torch.nn.functional.conv2d(x, k, padding=1)
    y = torch.nn.functional.batch_norm(y, None, None, torch.ones(16), torch.ones(16), True)
    torch.nn.functional.max_pool2d(torch.relu(y), 2).sum().backward()
    close(slope(form), x.grad.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("h, w", [(6, 7), (3, 4)])
def test_block_is_its_parts(form, h, w):
    """Scales have both signs: the sign decides whether pooling takes the maximum or the minimum."""
    args = block_inputs(h, w)
    assert (args[2] < 0).any() and (args[2] > 0).any()
    got = derivatives(lambda *a: blocks.conv_norm_pool(*a, form=form), *args)
    want = derivatives(plain_block, *args)
    close(got[:2], want[:2])
    close(got[2], want[2], 1e-4)  # second derivatives of 1 / sqrt(var) lose a digit in both


def test_one_pass_statistics_do_not_cancel():
    """With a mean of 1000 standard deviations, the mean of squares alone loses the variance."""
    quads = [list(row) for row in 1000.0 + jax.random.normal(KEYS[0], (2, 2, 4, 5, 6, 3))]
    mean, variance = block_forms._statistics([q for row in quads for q in row], 4 * 4 * 5 * 6)
    wide = np.asarray(quads, np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2, 3, 4)), rtol=1e-6)
    np.testing.assert_allclose(variance, wide.var((0, 1, 2, 3, 4)), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_block_with_one_kernel_per_task(form):
    tasks = [block_inputs(5, 6) for _ in range(3)]
    args = [
        jnp.stack([a * (1 + i) for i, a in enumerate(leaves)])
        for leaves in zip(*tasks, strict=True)
    ]
    got = derivatives(jax.vmap(lambda *a: blocks.conv_norm_pool(*a, form=form)), *args)
    want = derivatives(jax.vmap(plain_block), *args)
    close(got[:2], want[:2], 2e-5)
    close(got[2], want[2], 1e-4)


@pytest.mark.slow
def test_block_with_a_dead_channel():
    """Equal inputs have variance 0; nothing may become infinite."""
    _, kernel, scale, bias = block_inputs()
    images = jnp.ones((2, 6, 6, 3))
    for form in FORMS:
        got = derivatives(
            lambda *a, form=form: blocks.conv_norm_pool(*a, form=form),
            images,
            0 * kernel,
            scale,
            bias,
        )
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))


@pytest.mark.parametrize(
    "images, kernel, scale, form, message",
    [
        ((5, 5, 3), (3, 3, 3, 4), (4,), None, r"images: got shape \(5, 5, 3\)"),
        ((2, 5, 5, 3), (5, 5, 3, 4), (4,), None, r"kernel: got shape \(5, 5, 3, 4\)"),
        ((2, 5, 5, 3), (3, 3, 3, 4), (3,), None, r"scale: got shape \(3,\)"),
        ((2, 5, 5, 3), (3, 3, 3, 4), (4,), "fast", "form: got 'fast'"),
    ],
)
def test_block_refuses_what_does_not_fit(images, kernel, scale, form, message):
    args = [jnp.zeros(s) for s in (images, kernel, scale, (4,))]
    with pytest.raises(ValueError, match=message):
        blocks.conv_norm_pool(*args, form=form)


def torch_conv4(params, images):
    """Logits and loss gradients, with PyTorch's layers; gradients come back in our layout."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    leaves = jax.tree.map(lambda a: torch.tensor(np.asarray(a), requires_grad=True), params)
    x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    for i in range(1, 5):
        conv, norm = leaves[f"conv{i}"], leaves[f"norm{i}"]
        x = f.conv2d(x, conv["kernel"].permute(3, 2, 0, 1), conv["bias"], padding=1)
        x = f.batch_norm(x, None, None, norm["scale"], norm["bias"], training=True)
        x = f.max_pool2d(torch.relu(x), 2)
    x = x.permute(0, 2, 3, 1).flatten(1) @ leaves["head"]["kernel"] + leaves["head"]["bias"]
    f.cross_entropy(x, torch.arange(len(x)) % x.shape[1]).backward()
    return x.detach().numpy(), jax.tree.map(lambda a: a.grad.numpy(), leaves)


@pytest.mark.parametrize("shape, n", [((28, 28, 1), 25), ((28, 28, 1), 5), ((37, 40, 3), 10)])
def test_conv4_matches_pytorch(shape, n):
    model = nn.conv4(ways=5, width=32, image_shape=shape)
    params = model.init(KEYS[0])
    for i in range(1, 5):
        shaken = 1 + 0.5 * jax.random.normal(KEYS[i], (2, 32))
        params[f"norm{i}"] = {"scale": shaken[0], "bias": 0.2 * shaken[1]}
    images = jax.random.normal(KEYS[5], (n, *shape))

    def loss(params):
        logits = model.apply(params, images)
        one_hot = jax.nn.one_hot(jnp.arange(n) % 5, 5)
        return -jnp.mean(jnp.sum(one_hot * jax.nn.log_softmax(logits), 1)), logits

    (_, logits), gradients = quick(jax.value_and_grad(loss, has_aux=True))(params)
    want, want_gradients = torch_conv4(params, images)
    close(logits, want)
    for i in range(1, 5):
        # True gradient zero; PyTorch's is rounding error.
        assert not gradients[f"conv{i}"].pop("bias").any()
        want_gradients[f"conv{i}"].pop("bias")
    close(gradients, want_gradients)


def test_conv4_without_biases_has_none():
    """Except the shifts of the norms. The head is linear: it maps 0 to 0."""
    biased, plain = (nn.conv4(3, 4, (16, 16, 2), use_bias=b) for b in (True, False))
    params = biased.init(KEYS[0])
    bare = {
        name: layer if name.startswith("norm") else {"kernel": layer["kernel"]}
        for name, layer in params.items()
    }
    assert jax.tree.structure(plain.init(KEYS[0])) == jax.tree.structure(bare)
    images = jax.random.normal(KEYS[1], (4, 16, 16, 2))
    close(plain.apply(bare, images), biased.apply(params, images) - params["head"]["bias"][None])
    with pytest.raises(ValueError, match="params must have the leaves of this network"):
        plain.apply(params, images)


@pytest.mark.parametrize("kind", [collections.OrderedDict, FrozenDict])
def test_params_in_other_mapping_types(kind):
    model, images = nn.mlp(3, (4,), (2, 2, 1)), jnp.ones((2, 2, 2, 1))
    params = model.init(KEYS[0])
    others = kind({name: kind(params[name]) for name in ("head", "dense1")})
    np.testing.assert_array_equal(model.apply(others, images), model.apply(params, images))
    loss = jaxsparse.cross_entropy(model)
    batch = images, jnp.zeros(2, jnp.int32)
    gradient = jax.grad(lambda p: loss(p, batch)[0])(others)
    assert jax.tree.structure(gradient) == jax.tree.structure(others)


def test_params_of_another_network_are_named():
    model, images = nn.conv4(3, 4, (16, 16, 2)), jnp.ones((2, 16, 16, 2))
    wider = nn.conv4(3, 8, (16, 16, 2)).init(KEYS[0])
    with pytest.raises(ValueError, match=r"params\[conv1/bias\] has shape \(8,\), this network"):
        model.apply(wider, images)
    with pytest.raises(TypeError, match="images: got 'x', want an array"):
        model.apply(model.init(KEYS[0]), "x")


@pytest.fixture
def model(request):
    return request.param()


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.conv4(3, 4, (16, 16, 2)),
        lambda: nn.conv4(3, 4, (16, 16, 2), use_bias=False),
        lambda: nn.mlp(3, (7,), (16, 16, 2)),
        lambda: nn.mlp(3, (), (16, 16, 2)),
        lambda: nn.resnet12(3, (2, 4, 4, 8), (16, 16, 2)),
        lambda: nn.strided_cnn(3, 4, 3, (7,), (16, 16, 2)),
        lambda: nn.normalised(nn.mlp(3, (7,), (16, 16, 2)), (0.5, 0.4), (0.2, 0.3)),
    ],
    indirect=True,
    ids=["conv4", "conv4 without biases", "mlp", "linear", "resnet12", "strided", "normalised"],
)
class TestEveryModel:
    images = jax.random.normal(KEYS[0], (4, 16, 16, 2))

    def test_vmaps_over_seeds_and_their_parameters(self, model):
        params = quick(jax.vmap(model.init))(KEYS[:2])
        logits = quick(jax.vmap(model.apply, (0, None)))(params, self.images)
        assert logits.shape == (2, 4, 3)
        one = quick(model.init)(KEYS[1])
        close(one, jax.tree.map(lambda a: a[1], params))
        close(quick(model.apply)(one, self.images), logits[1], 1e-4)

    def test_keeps_half_precision(self, model):
        params = quick(model.init)(KEYS[0])
        assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype("float32")}
        half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
        logits = quick(model.apply)(half, self.images)
        assert logits.dtype == jnp.bfloat16
        close(logits, quick(model.apply)(params, self.images), 0.2)

    def test_is_a_plain_tree_with_gradients_like_it(self, model):
        params = quick(model.init)(KEYS[0])
        scalar = lambda p: jnp.sum(jnp.sin(model.apply(p, self.images)))  # noqa: E731
        gradients = quick(jax.grad(scalar))(params)
        assert jax.tree.structure(gradients) == jax.tree.structure(params)
        assert type(params) is dict and type(params["head"]) is dict
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))

    def test_refuses_other_images(self, model):
        with pytest.raises(ValueError, match=r"images: got shape \(4, 8, 8, 2\)"):
            jax.eval_shape(
                model.apply, jax.eval_shape(model.init, KEYS[0]), jnp.zeros((4, 8, 8, 2))
            )


def test_conv4_shapes_and_initialisation():
    params = nn.conv4(ways=7, width=32, image_shape=(84, 84, 3)).init(KEYS[0])
    assert params["conv1"]["kernel"].shape == (3, 3, 3, 32)
    assert params["conv4"]["bias"].shape == (32,)
    assert params["head"]["kernel"].shape == (5 * 5 * 32, 7)
    for name, fan_in in (("conv1", 27), ("conv2", 288), ("head", 800)):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        bound = fan_in**-0.5
        assert 0.97 * bound < jnp.abs(kernel).max() <= bound
        assert jnp.abs(bias).max() <= bound
        # A uniform variable on +-b has the deviation b / sqrt(3).
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
    assert (params["norm1"]["scale"] == 1).all() and (params["norm1"]["bias"] == 0).all()
    assert not jnp.array_equal(params["conv2"]["kernel"], params["conv3"]["kernel"])


@pytest.mark.parametrize(
    "layers, shape", [(1, (8, 8, 3)), pytest.param(3, (5, 10, 2), marks=pytest.mark.slow)]
)
def test_strided_cnn_is_its_layers(layers, shape):
    model = nn.strided_cnn(5, channels=6, layers=layers, hidden=(7,), image_shape=shape)
    params = quick(model.init)(KEYS[0])
    shaken = lambda a: a + 0.1 * jax.random.normal(KEYS[1], a.shape)  # noqa: E731
    params = jax.tree.map(shaken, params)
    images = jax.random.normal(KEYS[2], (3, *shape))

    def plain(params, images):
        x = images
        for i in range(1, layers + 1):
            layer = params[f"conv{i}"]
            x = jax.nn.relu(
                xla_conv(x, layer["kernel"], stride=2) + layer["bias"].reshape(1, 1, 1, -1)
            )
        x = x.reshape(len(x), -1)
        x = jax.nn.relu(x @ params["dense1"]["kernel"] + params["dense1"]["bias"][None])
        return x @ params["head"]["kernel"] + params["head"]["bias"][None]

    def value_and_gradients(apply):
        scalar = lambda *a: jnp.sum(jnp.sin(apply(*a)) * jnp.arange(1.0, 6.0)[None])  # noqa: E731
        return quick(lambda *a: (apply(*a), jax.grad(scalar, (0, 1))(*a)))(params, images)

    close(value_and_gradients(model.apply), value_and_gradients(plain))


def test_strided_cnn_has_the_published_sizes():
    def sizes(*args, **kwargs):
        params = jax.eval_shape(nn.strided_cnn(*args, **kwargs).init, KEYS[0])
        return sum(a.size for a in jax.tree.leaves(params)), jax.tree.map(jnp.shape, params)

    count, three = sizes(100, layers=3, hidden=(320, 320))
    assert count == 1_419_940 and three["dense1"]["kernel"] == (2560, 320)
    _, four = sizes(10)
    assert list(four) == ["conv1", "conv2", "conv3", "conv4", "dense1", "dense2", "head"]
    assert four["conv1"] == {"kernel": (3, 3, 3, 160), "bias": (160,)}
    assert four["conv4"] == {"kernel": (3, 3, 160, 160), "bias": (160,)}
    assert four["dense1"]["kernel"] == (640, 640) and four["head"]["kernel"] == (640, 10)


@pytest.mark.parametrize("build", [nn.mlp, nn.strided_cnn])
@pytest.mark.parametrize("init", ["kaiming", "xavier"])
def test_other_initialisations(build, init):
    """The fans give the deviation; the fourth moment and largest entry give the distribution."""
    if build is nn.mlp:
        model = nn.mlp(40, (300,), (12, 12, 2), init)
        fans = {"dense1": (288, 300), "head": (300, 40)}
    else:
        model = nn.strided_cnn(40, 30, 2, (300,), (12, 12, 2), init)
        fans = {"conv1": (18, 270), "conv2": (270, 270), "dense1": (270, 300), "head": (300, 40)}
    params = quick(model.init)(KEYS[0])
    assert params.keys() == fans.keys()
    for name, (fan_in, fan_out) in fans.items():
        kernel, bias = np.asarray(params[name]["kernel"], np.float64), params[name]["bias"]
        assert not bias.any() and bias.dtype == jnp.float32
        variance = {"kaiming": 2 / fan_in, "xavier": 2 / (fan_in + fan_out)}[init]
        assert abs(kernel.mean()) < 4 * (variance / kernel.size) ** 0.5
        np.testing.assert_allclose(kernel.var(), variance, rtol=0.15)
        kurtosis = (kernel**4).mean() / kernel.var() ** 2  # normal: 3, uniform: 9 / 5
        assert abs(kurtosis - {"kaiming": 3.0, "xavier": 1.8}[init]) < 0.35
        if init == "xavier":
            assert 0.9 < np.abs(kernel).max() / (3 * variance) ** 0.5 <= 1 + 1e-6


def test_inits_by_default():
    same = lambda a, b: close(quick(a.init)(KEYS[0]), quick(b.init)(KEYS[0]), 0)  # noqa: E731
    same(nn.mlp(3, (5,)), nn.mlp(3, (5,), init="pytorch"))
    strided = (3, 4, 2, (5,))
    same(nn.strided_cnn(*strided), nn.strided_cnn(*strided, init="kaiming"))
    bound = 8**-0.5
    kernel = nn.mlp(500, (), (2, 2, 2)).init(KEYS[0])["head"]["kernel"]
    assert 0.99 * bound < jnp.abs(kernel).max() <= bound


def test_normalised_scales_stored_pixels():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    model = nn.mlp(4, (), (2, 3, 3))
    params = model.init(KEYS[0])
    stored = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 3), dtype=np.uint8)
    scaled = (stored.astype(np.float64) / 255 - mean) / std
    want = scaled.reshape(5, -1) @ np.asarray(params["head"]["kernel"]) + np.asarray(
        params["head"]["bias"]
    )
    wrapped = nn.normalised(model, mean, std)
    close(wrapped.apply(params, jnp.asarray(stored)), want)
    close(wrapped.apply(params, jnp.asarray(stored, jnp.float32)), want)
    with pytest.raises(ValueError, match=r"images: got shape \(5, 2, 3, 1\), want \[n, h, w, 3\]"):
        wrapped.apply(params, stored[..., :1])
    close(wrapped.init(KEYS[0]), params, 0)


def test_resnet12_keeps_its_resolution_and_count():
    model = nn.resnet12(5, (4, 6, 8, 10), (20, 20, 3))
    params = quick(model.init)(KEYS[0])
    kernels = [a for a in jax.tree.leaves(params) if a.ndim == 4]
    assert len(kernels) == 16  # four blocks of three, and four skips
    bound = (6 / (9 * (4 + 4))) ** 0.5
    assert 0.9 * bound < jnp.abs(params["block1"]["conv2"]["kernel"]).max() <= bound
    text = jax.jit(model.apply).lower(params, jnp.zeros((2, 20, 20, 3))).as_text()
    # 20 -> 10 -> 5 -> (5 + 2) // 2 = 3: the padding of the third pool makes it 3 and not 2.
    assert "2x3x3x10xf32" in text and "2x2x2x10xf32" not in text


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: nn.conv4(width=0), "width: got 0"),
        (lambda: nn.conv4(image_shape=(8, 8, 3)), r"image_shape: got \(8, 8, 3\)"),
        (lambda: nn.mlp(5, (10, -1)), r"hidden: got \(10, -1\)"),
        (lambda: nn.resnet12(5, (1, 2, 3)), r"channels: got \(1, 2, 3\), want four"),
        (lambda: nn.resnet12(5, image_shape=(4, 84, 3)), r"image_shape: got \(4, 84, 3\), want"),
        (lambda: nn.mlp(5, init="he"), "init: got 'he', want one of"),
        (lambda: nn.strided_cnn(5, init="he"), "init: got 'he', want one of"),
        (lambda: nn.strided_cnn(5, layers=0), "layers: got 0"),
        (lambda: nn.normalised(nn.mlp(5), (0.0,), (0.0,)), "std must be finite and not 0, got"),
        (lambda: nn.normalised(nn.mlp(5), (np.nan,), (1.0,)), "mean must be finite, got"),
        (
            lambda: nn.normalised(nn.mlp(5), (0.0,), (np.inf,)),
            "std must be finite and not 0, got",
        ),
        (lambda: nn.normalised(nn.mlp(5), (0.0,), (1.0, 1.0)), "mean must have 2 values"),
        (lambda: nn.mlp(2.5), "ways: got 2.5, want positive integers"),
        (lambda: nn.mlp(5, (4,), (2, 2)), r"image_shape: got \(2, 2\), want \(h, w, c\)"),
        (lambda: nn.conv4("5"), "ways: got '5', want positive integers"),
        (lambda: nn.mlp(5, (4, math.nan)), r"hidden: got \(4, nan\), want positive integers"),
    ],
)
def test_builders_refuse_bad_sizes(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_first_layer_computes_no_image_gradient():
    """The gradient of the images is not needed, and the loop must not compute it."""
    model = nn.conv4(5, 32, (32, 32, 3))
    params = jax.eval_shape(model.init, KEYS[0])
    images = jax.ShapeDtypeStruct((5, 32, 32, 3), jnp.float32)

    def compiled(spots):
        def step(carry, _):
            slopes = jax.grad(lambda *a: jnp.sum(jnp.sin(model.apply(*a))), spots)(*carry)
            moved = jax.tree.map(lambda a, b: a - 0.1 * b, carry[: len(spots)], slopes)
            return (*moved, *carry[len(spots) :]), None

        run = jax.jit(lambda *carry: lax.scan(step, carry, None, length=2)[0])
        return run.lower(params, images).compile({"xla_backend_optimization_level": 0}).as_text()

    # The gradient of the patches of one quadrant, an image at a time: 16 x 16 positions, 3 x 3 x 3.
    product = re.compile(r"f32\[256,27\]\S* dot\(")
    assert not product.search(compiled((0,)))
    assert product.search(compiled((0, 1)))
