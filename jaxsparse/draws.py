"""Random draws that compile fast; the numbers are the same as those of `jax.random`."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Spec = TypeVar("Spec", bound=Hashable)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype, low: float, high: float) -> jax.Array:
    """`jax.random.uniform`, drawn as a vector and reshaped, which gives the same numbers.

    XLA compiles a draw of rank 1 about four times faster than one of rank 4.
    """
    flat = jax.random.uniform(key, (int(np.prod(shape)),), dtype, low, high)
    return jax.lax.optimization_barrier(flat.reshape(shape))


def draw_each(
    draw: Callable[[jax.Array, Spec], jax.Array], keys: jax.Array, specs: Sequence[Spec]
) -> list[jax.Array]:
    """`[draw(key, spec) for key, spec in zip(keys, specs)]`, one vmapped draw for equal specs.

    This compiles faster, as a network has many tensors but few different shapes.
    """
    places: dict[Spec, list[int]] = {}
    for place, spec in enumerate(specs):
        places.setdefault(spec, []).append(place)
    drawn: dict[int, jax.Array] = {}
    for spec, where in places.items():
        values = jax.vmap(lambda key, spec=spec: draw(key, spec))(keys[jnp.array(where)])
        drawn |= dict(zip(where, values, strict=True))
    return [drawn[place] for place in range(len(specs))]


def choose(key: jax.Array, allowed: jax.Array, count: int) -> jax.Array:
    """Draw `count` distinct indices at which `allowed` [..., n] is True: int32 [..., count]."""
    # XLA's fast top_k on the CPU supports only float32. Random bits, read as positive normal
    # floats, have 30 random bits; jax.random.uniform has 23. Ties, which top_k resolves by
    # position, are then too rare to bias the draw.
    bits = jax.random.bits(key, allowed.shape, jnp.uint32)
    scores = jax.lax.bitcast_convert_type((bits >> 2) + jnp.uint32(1 << 23), jnp.float32)
    # Without the barrier, slicing the result would make XLA sort the whole array.
    return jax.lax.optimization_barrier(jax.lax.top_k(jnp.where(allowed, scores, -1.0), count)[1])
