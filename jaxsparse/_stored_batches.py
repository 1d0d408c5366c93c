"""C-MAML's buffer of batches: storing a batch, and choosing the pairs of an update."""

import jax
import jax.numpy as jnp


def store(buffer, batch, at):
    """The buffer with `batch` at index `at`; in a full buffer it overwrites the last batch."""
    # A full buffer was just used for an update, and batches beyond the stored ones are never read.
    return jax.tree.map(
        lambda rows, x: jax.lax.dynamic_update_index_in_dim(rows, x, at, 0), buffer, batch
    )


def pair_places(_, pair, stored):
    """The indices of a pair's support and query batch; a single stored batch is both."""
    return pair, jnp.minimum((stored + 1) // 2 + pair, stored - 1)


def drawn_places(key, _, stored):
    """The indices of two random stored batches; a single stored batch is both."""
    first_key, second_key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 0, stored, jnp.int32)
    ahead = jax.random.randint(second_key, (), 1, jnp.maximum(stored, 2), jnp.int32)
    return first, (first + ahead) % jnp.maximum(stored, 1)
