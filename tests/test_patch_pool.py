"""Convolution by patches with ReLU and max-pooling: values and derivatives, and the GPU kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import quick_jit
from test_residual import normal

from jaxsparse.nn import patch_pool, patch_pool_kernels
from jaxsparse.nn.patch_pool import CUT

pool = jax.tree_util.Partial(patch_pool.patch_pool, pallas=True)
# Patches and kernels of three tasks; windows and channels that fill no block, and one that do.
SIZES = [(3, 2, 5, 7, 10, 20), (1, 1, 4, 8, 16, 16), (2, 1, 1, 1, 28, 3)]


def drawn(t, n, h, w, k, o):
    return normal(0, [(t, 4, n, h, w, k), (t, k, o)])


def by_hand(patches, kernel):
    """In NumPy: the output, and the places from which it comes, the first of equals."""
    y = np.einsum("pnhwk,ko->pnhwo", np.float64(patches), np.float64(kernel))
    place, best = y.argmax(0), y.max(0)  # argmax takes the first NaN, if there is one
    return np.maximum(best, 0), np.where(best <= 0, CUT, place)


def simple(patches, kernel):
    return jax.nn.relu(jnp.max(jnp.einsum("pnhwk,ko->pnhwo", patches, kernel), 0))


def every_derivative(function, args):
    """The value, the gradients, and second derivatives in reverse and in forward mode."""

    def total(*args):
        return jnp.sum(jnp.sin(function(*args)))

    gradients = jax.grad(total, (0, 1))

    def slope(*args):
        return sum(jnp.sum(jnp.square(g)) for g in gradients(*args))

    return (
        function(*args),
        gradients(*args),
        jax.grad(slope, (0, 1))(*args),
        jax.jvp(gradients, args, args)[1],
    )


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(np.abs(b).max(), 1))


@pytest.mark.parametrize("axes", [None, (0, 0), (0, None), (None, 0)], ids=str)
def test_values_and_derivatives_of_every_order_match_autodiff(axes):
    args = drawn(*SIZES[0])
    if axes is None:
        args = args[0][0], args[1][0]
    else:
        args = tuple(x if a == 0 else x[0] for x, a in zip(args, axes, strict=True))

    def all_of(function):
        every = lambda *args: every_derivative(function, args)  # noqa: E731
        return every if axes is None else jax.vmap(every, axes)

    close(quick_jit(all_of(pool))(*args), quick_jit(all_of(simple))(*args))


def test_two_mapped_axes_and_no_jit():
    patches, kernel = drawn(*SIZES[0])
    args = jnp.stack([patches, 2 * patches]), jnp.stack([kernel, -kernel])

    def mapped(function):
        gradient = jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args))), (0, 1))
        return jax.vmap(jax.vmap(gradient))

    close(mapped(pool)(*args), mapped(simple)(*args))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_gpu_kernels_match_numpy(sizes):
    t, n, h, w, k, o = sizes
    patches, kernel = drawn(*sizes)
    (gradient,) = normal(1, [(n * h * w, t, o)])
    rows = patches.reshape(t, 4, -1, k)
    options = {"precision": "float32", "interpret": True}
    out, place = patch_pool_kernels.pool(rows, kernel, **options)
    found = patch_pool_kernels.kernel_gradient(rows, gradient, place, **options)
    for i in range(t):
        want, at = by_hand(patches[i], kernel[i])
        np.testing.assert_allclose(out[:, i], want.reshape(-1, o), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(place[:, i], at.reshape(-1, o))
        picked = sum(
            np.float64(rows[i, p]).T @ np.where(at.reshape(-1, o) == p, gradient[:, i], 0)
            for p in range(4)
        )
        np.testing.assert_allclose(found[i], picked, rtol=0, atol=1e-4)


@pytest.mark.parametrize("on_gpu", [False, True], ids=["xla", "pallas"])
def test_the_first_of_equals_and_nan(on_gpu):
    """Windows: equal entries; NaN at one place, at two; no positive entry."""
    nan = np.nan
    values = [(1, 2, 2, 0), (1, nan, 5, 0), (nan, 1, nan, 0), (-1, 0, -2, -3)]
    patches = jnp.array(values, jnp.float32).T.reshape(1, 4, 1, 1, 4, 1)
    kernel = jnp.ones((1, 1, 1))
    if on_gpu:
        rows = patches.reshape(1, 4, 4, 1)
        out, place = patch_pool_kernels.pool(rows, kernel, precision="float32", interpret=True)
    else:
        out, place = patch_pool._pool_in_xla(patches, kernel, precision="float32")
    np.testing.assert_array_equal(out.ravel(), [2, nan, nan, 0])
    np.testing.assert_array_equal(place.ravel(), [1, 1, 0, CUT])


def test_without_pallas_for_triton_a_gpu_uses_xla(monkeypatch):
    monkeypatch.setattr(patch_pool, "has_kernels", lambda: False)
    args = [x[0] for x in drawn(*SIZES[1])]
    lowered = jax.jit(lambda *args: pool(*args)).trace(*args).lower(lowering_platforms=("cuda",))
    assert "triton" not in lowered.as_text()


@pytest.mark.parametrize("pallas", [False, True])
def test_only_pallas_calls_the_gpu_kernels(pallas):
    """Which `jax.export` refuses; compiled for a GPU, the gradient is two of them."""
    patches, kernel = (x[0] for x in drawn(*SIZES[0]))

    def total(kernel):
        return jnp.sum(patch_pool.patch_pool(patches, kernel, pallas=pallas))

    # JAX 0.12 asks for the GPU that Pallas compiles for.
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("gpu",), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(jax.grad(total)).trace(kernel).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("@__gpu$xla.gpu.triton") == (2 if pallas else 0)
    export = jax.export.export(jax.jit(total), platforms=["cuda"])
    if pallas:
        with pytest.raises((ValueError, RuntimeError), match=r"custom calls|No supported GPU"):
            export(kernel)
    else:
        export(kernel)
