"""Draws that compile fast equal the draws of jax.random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import gates, nn
from jaxsparse.draws import draw_each, uniform


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (5,), (3, 3, 2, 4), (2, 0)])
def test_a_flat_draw_equals_a_shaped_draw(shape, dtype):
    key = jax.random.key(0)
    want = jax.random.uniform(key, shape, dtype, -0.3, 0.7)
    np.testing.assert_array_equal(uniform(key, shape, dtype, -0.3, 0.7), want)


def test_joint_draws_use_separate_keys():
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(2,), (3, 1), (2,), (2,), (3, 1)]
    together = draw_each(jax.random.normal, keys, shapes)
    for key, shape, got in zip(keys, shapes, together, strict=True):
        np.testing.assert_array_equal(got, jax.random.normal(key, shape))


def test_a_network_is_drawn_from_one_key_per_tensor():
    key, width = jax.random.key(3), 4
    params = nn.conv4(ways=3, width=width, image_shape=(16, 16, 2)).init(key)
    for place, (name, leaf) in enumerate(
        (f"conv{i}", leaf) for i in range(1, 5) for leaf in ("kernel", "bias")
    ):
        bound = (9 * (2 if name == "conv1" else width)) ** -0.5
        want = jax.random.fold_in(key, place)
        want = jax.random.uniform(want, params[name][leaf].shape, jnp.float32, -bound, bound)
        np.testing.assert_array_equal(params[name][leaf], want)


def test_a_mask_is_drawn_from_one_key_per_tensor():
    key, params = jax.random.key(3), {name: jnp.ones((4, 2)) for name in "abc"}
    masks = gates.linear((0.0, 1.0)).init(key, params | {"d": jnp.ones(5)})
    for subkey, (name, got) in zip(jax.random.split(key, 4), masks.items(), strict=True):
        np.testing.assert_array_equal(got, jax.random.uniform(subkey, got.shape), err_msg=name)
