"""Convolution, normalisation and pooling whose gradients stay fast inside a compiled loop."""

import jax
import jax.numpy as jnp
from jax import Array


def _patches(images: Array, size: int, stride: int, padding: int) -> Array:
    pad = (padding, padding)
    images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    h, w = images.shape[1] - size + 1, images.shape[2] - size + 1
    slices = [
        images[:, i : i + h : stride, j : j + w : stride] for i in range(size) for j in range(size)
    ]
    return slices[0] if size == 1 else jnp.concatenate(slices, axis=-1)


def conv(images: Array, kernel: Array, *, stride: int = 1, padding: int | None = None) -> Array:
    size, _, _, features = kernel.shape
    padding = size // 2 if padding is None else padding
    return _patches(images, size, stride, padding) @ kernel.reshape(-1, features)


def batch_norm(x: Array, scale: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    x32 = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x32, axes)
    var = jnp.mean(jnp.square(x32 - mean), axes)
    gain = scale.astype(jnp.float32) * jax.lax.rsqrt(var + eps)
    return ((x32 - mean) * gain + bias.astype(jnp.float32)).astype(x.dtype)


def max_pool(x: Array, *, padding: int = 0) -> Array:
    pad = (padding, padding)
    if padding:
        x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=-jnp.inf)
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    a, b, c, d = (x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1))
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
