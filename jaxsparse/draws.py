"""Random draws in the form that compiles fastest; their numbers are those of jax.random."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Spec = TypeVar("Spec", bound=Hashable)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype, low: float, high: float) -> jax.Array:
    """`jax.random.uniform`, drawn flat: JAX's generator counts elements, whatever their shape.

    XLA compiles a flat draw about four times as fast as one of rank 4.
    """
    flat = jax.random.uniform(key, (int(np.prod(shape)),), dtype, low, high)
    return jax.lax.optimization_barrier(flat.reshape(shape))


def draw_each(
    draw: Callable[[jax.Array, Spec], jax.Array], keys: jax.Array, specs: Sequence[Spec]
) -> list[jax.Array]:
    """`[draw(key, spec) for key, spec in zip(keys, specs)]`, equal specs in one vmapped draw.

    A network has many tensors but few shapes; every draw on its own is a program to compile.
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
    """`count` distinct allowed positions of the last axis, uniformly and in random order.

    allowed is bool [..., n]; the result int32 [..., count].
    """
    # XLA's fast top_k on the CPU takes float32 only. Random bits read as positive normal floats
    # keep 30 bits, where jax.random.uniform would keep 23: ties, which top_k settles by position,
    # are too rare to bias the draw.
    bits = jax.random.bits(key, allowed.shape, jnp.uint32)
    scores = jax.lax.bitcast_convert_type((bits >> 2) + jnp.uint32(1 << 23), jnp.float32)
    # A slice of its result would turn that top_k into a whole sort: hence the barrier.
    return jax.lax.optimization_barrier(jax.lax.top_k(jnp.where(allowed, scores, -1.0), count)[1])
