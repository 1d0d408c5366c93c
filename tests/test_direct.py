"""The forms for GPUs, computed on the CPU: grouped convolutions, prepared images, derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from problems import quick_jit
from test_blocks import meta_step
from test_native import difference
from test_residual import normal

import jaxsparse
from jaxsparse import nn
from jaxsparse.nn import blocks, direct, grouped, residual

TASKS = 3


def plain(images, kernel, padding):
    pads, dims = [(padding, padding)] * 2, ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=dims)


def every_derivative(conv, padding, images, kernel):
    """The value, the gradients, and second derivatives in reverse and in forward mode."""
    args = images, kernel

    def total(*args):
        return jnp.sum(jnp.sin(conv(*args, padding)))

    gradients = jax.grad(total, (0, 1))

    def slope(*args):
        return sum(jnp.sum(jnp.square(g)) for g in gradients(*args))

    return (
        conv(*args, padding),
        gradients(*args),
        jax.grad(slope, (0, 1))(*args),
        jax.jvp(gradients, args, args)[1],
    )


AXES = [(0, 0), (0, None), (None, 0)]


@pytest.mark.parametrize(
    "size, padding, axes",
    [
        *((3, 1, axes) for axes in AXES),
        *((*conv, AXES[0]) for conv in ((3, 0), (1, 0))),
        *(
            pytest.param(*conv, axes, marks=pytest.mark.slow)
            for conv in ((3, 0), (1, 0))
            for axes in AXES[1:]
        ),
    ],
)
def test_grouped_convolutions_and_their_derivatives(size, padding, axes):
    images, kernels = normal(0, [(TASKS, 2, 7, 6, 3), (TASKS, size, size, 3, 4)])
    args = [x if axis == 0 else x[1] for x, axis in zip((images, kernels), axes, strict=True)]

    def found(conv):
        one = partial(every_derivative, conv, padding)
        # Twice, as for the tasks of several seeds.
        twice = jax.vmap(lambda a, b: jax.vmap(one, axes)(a, b), (None, 0))
        return quick_jit(twice)(args[0], jnp.stack([args[1], -2 * args[1]]))

    for ours, want in zip(
        *map(jax.tree.leaves, map(found, (grouped.convolve, plain))), strict=True
    ):
        assert ours.shape == want.shape and difference(ours, want) < 1e-5


def test_tasks_are_groups_in_a_convolution_and_in_both_gradients():
    """JAX's own rule would make the gradient of the kernels a convolution with a huge window."""
    args = normal(0, [(TASKS, 2, 6, 6, 8), (TASKS, 3, 3, 8, 8), (TASKS, 8), (TASKS, 8)])
    block = partial(blocks.conv_norm_pool, form="xla")
    gradient = jax.vmap(jax.grad(lambda *a: jnp.sum(block(*a)), (0, 1)))
    program = jax.export.export(jax.jit(gradient), platforms=["cuda"])(*args).mlir_module()
    groups = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert len(groups) == 3
    assert sum(f"feature_group_count = {TASKS}" in line for line in groups) == 2
    assert sum(f"batch_group_count = {TASKS}" in line for line in groups) == 1


@pytest.mark.parametrize("channels", [1, 4])
def test_a_block_has_the_forward_derivative_of_its_gradient(channels):
    args = normal(1, [(2, 7, 6, channels), (3, 3, channels, 9), (9,), (9,)])
    along = normal(2, [x.shape for x in args])

    def gradients(*args):
        def total(*args):
            return jnp.sum(jnp.sin(blocks.conv_norm_pool(*args, form="direct")))

        return jax.grad(total, (0, 1, 2, 3))(*args)

    forward = quick_jit(lambda *a: jax.jvp(gradients, a, tuple(along))[1])(*args)
    # A Hessian is symmetric: in reverse mode, the same product.
    reverse = quick_jit(lambda *a: jax.vjp(gradients, *a)[1](tuple(along)))(*args)
    for a, b in zip(forward, reverse, strict=True):
        assert difference(a, b) < 1e-4


def test_prepared_images_give_the_same():
    images, kernel, scale, bias = normal(1, [(2, 7, 6, 3), (3, 3, 3, 30), (30,), (30,)])

    def found(images):
        def total(*args):
            return jnp.sum(jnp.sin(blocks.conv_norm_pool(*args, form="direct")))

        return jax.value_and_grad(total, (1, 2, 3))(images, kernel, scale, bias)

    found = quick_jit(found)
    prepared = blocks.prepare(images, kernel.shape, "direct")
    assert isinstance(prepared, direct.Prepared)
    for a, b in zip(*map(jax.tree.leaves, (found(prepared), found(images))), strict=True):
        assert difference(a, b) < 1e-6


def test_an_inner_loop_prepares_its_images_once(monkeypatch):
    model = nn.conv4(3, 9, (16, 16, 1), blocks="xla")
    params = model.init(jax.random.key(0))
    rows = jnp.ones((3, 16, 16, 1)), jnp.arange(3)
    loss = jaxsparse.cross_entropy(model)
    sizes = jax.tree.map(lambda x: jnp.float32(0.1), params)
    calls, before = [], direct.prepare
    monkeypatch.setattr(direct, "prepare", lambda images: calls.append(1) or before(images))
    jax.eval_shape(model.prepare, rows[0])
    once = len(calls)
    jax.eval_shape(lambda p: jaxsparse.adapt(loss, p, sizes, rows, 3), params)
    # JAX has kept the trace of it, so a call of the first block's own would be a third.
    assert len(calls) == once == 2


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("channels", [1, 4])
def test_statistics_do_not_cancel(channels, offset):
    images, kernel, scale, bias = normal(1, [(3, 9, 8, channels), (3, 3, channels, 9), (9,), (9,)])
    args = images + offset, kernel, scale, bias
    out = blocks.conv_norm_pool(*args, form="direct")
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in args]
        y = plain(wide[0], wide[1], 1)
        mean, variance = (f(y, (0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
        gain, shift = (x.reshape(1, 1, 1, -1) for x in wide[2:])
        z = (y - mean) / jnp.sqrt(variance + 1e-5) * gain + shift
        top = lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        want = np.asarray(jnp.maximum(top, 0))
    assert difference(out, want) < (1e-6 if offset == 0 else 1e-4)


def test_half_precision_is_computed_in_single():
    args = normal(1, [(2, 7, 6, 3), (3, 3, 3, 30), (30,), (30,)])
    half = [x.astype(jnp.bfloat16) for x in args]
    single = [x.astype(jnp.float32) for x in half]
    out = blocks.conv_norm_pool(*half, form="direct")
    assert out.dtype == jnp.bfloat16
    wide = blocks.conv_norm_pool(*single, form="direct")
    np.testing.assert_array_equal(out, wide.astype(jnp.bfloat16))


def test_an_exported_meta_step_contains_xlas_convolutions_only_for_the_gpu():
    loss, args = meta_step()

    def text(*platforms):
        return jax.export.export(jax.jit(loss), platforms=platforms)(*args).mlir_module()

    assert "stablehlo.convolution" in text("cuda")
    assert "stablehlo.convolution" not in text("cpu")


def test_residual_layers_have_forward_derivatives_of_their_gradients():
    layer = partial(residual.conv_norm, slope=0.1, form="direct")
    args = normal(1, [(2, 5, 6, 3), (3, 3, 3, 4), (4,), (4,)])

    def gradients(*args):
        def total(*args):
            out = layer(*args)
            joined = residual.join(out, out[::-1], slope=0.1, padding=1, form="direct")
            return jnp.sum(jnp.sin(joined))

        return jax.grad(total, (0, 1, 2, 3))(*args)

    forward = quick_jit(lambda *a: jax.jvp(gradients, a, a)[1])(*args)
    reverse = quick_jit(lambda *a: jax.vjp(gradients, *a)[1](a))(*args)
    for a, b in zip(forward, reverse, strict=True):
        assert difference(a, b) < 1e-4
