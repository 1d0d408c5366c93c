"""The straight-through primitives against constants computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxsparse import binary_mask, relu_mask

M = [-2.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, np.nan, np.inf, -np.inf]
# XLA flushes subnormal numbers to zero, NumPy does not.
FLOATS = hnp.arrays(np.float32, 16, elements=st.floats(width=32, allow_subnormal=False))


def test_binary_values():
    np.testing.assert_array_equal(binary_mask(jnp.array(M)), [0, 0, 1, 1, 1, 1, 0, 1, 0])


def test_relu_values():
    np.testing.assert_array_equal(
        relu_mask(jnp.array(M)), [0, 0, 0, 0, np.float32(1e-30), 0.5, np.nan, np.inf, 0]
    )


@given(FLOATS)
def test_binary_matches_numpys_comparison(m):
    np.testing.assert_array_equal(binary_mask(jnp.asarray(m)), (m >= 0).astype(np.float32))


@given(FLOATS)
def test_relu_matches_numpys_maximum(m):
    np.testing.assert_array_equal(relu_mask(jnp.asarray(m)), np.maximum(m, 0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("mask, want", [(binary_mask, [0, 1, 1]), (relu_mask, [0, 0, 0.5])])
def test_dtype_is_kept(mask, want, dtype):
    m = jnp.array([-1.0, 0.0, 0.5], dtype)
    out, pull_back = jax.vjp(mask, m)
    (dm,) = pull_back(jnp.ones(3, dtype))
    assert out.dtype == dm.dtype == dtype
    np.testing.assert_array_equal(out.astype(jnp.float32), want)
    np.testing.assert_array_equal(dm.astype(jnp.float32), [1, 1, 1])


@pytest.mark.parametrize("mask", [binary_mask, relu_mask])
def test_a_python_number_is_a_scalar(mask):
    assert mask(-1.0).shape == () and mask(-1.0) == 0.0 and mask(1.0) == 1.0


CT = [3.0, -1.0, 0.25, 7.0, 0.0, -2.0, 1.0, 5.0, 4.0]


@pytest.mark.parametrize(
    "mask, slope",
    [(binary_mask, 1.0), (lambda m: binary_mask(m, 0.5), 0.5), (relu_mask, 1.0)],
)
def test_cotangent_passes_unchanged(mask, slope):
    _, pull_back = jax.vjp(mask, jnp.array(M))
    np.testing.assert_array_equal(pull_back(jnp.array(CT))[0], slope * np.array(CT))


@pytest.mark.parametrize("mask", [binary_mask, relu_mask])
def test_transformations(mask):
    """jit, vmap, grad and scan, alone and combined, give the same function."""
    m = jnp.array([[-1.0, 0.0, 2.0], [0.5, -0.5, -0.0]])
    weights = jnp.arange(6.0).reshape(2, 3)

    def weighted(m, w):
        return jnp.sum(w * mask(m))

    out = mask(m)
    np.testing.assert_array_equal(jax.jit(mask)(m), out)
    np.testing.assert_array_equal(jax.vmap(mask)(m), out)
    np.testing.assert_array_equal(jax.lax.scan(lambda c, x: (c, mask(x)), 0, m)[1], out)
    np.testing.assert_array_equal(jax.jit(jax.grad(weighted))(m, weights), weights)
    np.testing.assert_array_equal(jax.vmap(jax.grad(weighted))(m, weights), weights)

    def scanned(m):
        return jax.lax.scan(lambda total, row: (total + weighted(*row), None), 0.0, (m, weights))[0]

    np.testing.assert_array_equal(jax.grad(scanned)(m), weights)


@pytest.mark.parametrize("mask", [binary_mask, relu_mask])
def test_integers_are_refused(mask):
    with pytest.raises(TypeError, match=r"^m must be floating, got int32"):
        mask(jnp.array([1, 0]))
