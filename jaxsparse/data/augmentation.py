"""Random shifts, flips and brightness changes."""

import jax
import jax.numpy as jnp

from jaxsparse.errors import DataError

CROP_PADDING = 4  # pixels
BRIGHTNESS = 63 / 255  # largest relative change


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Crop, flip and change the brightness of each image at random.

    The image is padded with 4 black pixels on every side and cropped to its original size; flipped
    left to right with probability 1/2; then min(255, floor(f x)), f ~ U[1 - 63/255, 1 + 63/255].

    Args:
        key: a jax.random key.
        images: uint8 [b, h, w, c].

    Returns:
        uint8 [b, h, w, c].

    Raises:
        DataError: `images` has another dtype or number of axes.

    Examples:
        >>> augment(jax.random.key(0), jnp.zeros((2, 32, 32, 3), jnp.uint8)).shape
        (2, 32, 32, 3)

    Source: Gupta et al. 2020, La-MAML, public code.
    """
    if images.ndim != 4 or images.dtype != jnp.uint8:
        raise DataError(
            f"images must be uint8 [b, h, w, c], got {images.dtype} {list(images.shape)}"
        )
    place_key, flip_key, light_key = jax.random.split(key, 3)
    count = len(images)
    places = jax.random.randint(place_key, (count, 2), 0, 2 * CROP_PADDING + 1)
    flips = jax.random.bernoulli(flip_key, shape=(count,))
    factors = jax.random.uniform(light_key, (count,), minval=1 - BRIGHTNESS, maxval=1 + BRIGHTNESS)
    return _brightened(_shifted(images, places, flips), factors)


def _shifted(images: jax.Array, places: jax.Array, flips: jax.Array) -> jax.Array:
    """Crop each padded image at `places` [b, 2], then flip it if `flips` [b] is true."""
    pad = (CROP_PADDING, CROP_PADDING)
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    _, height, width, _ = images.shape
    rows = places[:, :1] + jnp.arange(height)[None]
    columns = jnp.arange(width)[None]
    columns = places[:, 1:] + jnp.where(flips[:, None], columns[:, ::-1], columns)
    own = jnp.arange(len(images))[:, None, None]
    return padded.at[own, rows[:, :, None], columns[:, None, :]].get(mode="promise_in_bounds")


def _brightened(images: jax.Array, factors: jax.Array) -> jax.Array:
    """min(255, floor(factor * x)) in float32, as PIL's ImageEnhance.Brightness computes it."""
    scaled = images.astype(jnp.float32) * factors.astype(jnp.float32)[:, None, None, None]
    return jnp.minimum(scaled, 255).astype(jnp.uint8)
