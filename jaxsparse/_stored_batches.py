"""C-MAML's buffer of batches: storing a batch, and choosing the pairs of an update."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.checks import leaves_by_name


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


def check_fits(batch: Any, buffer: Any) -> None:
    """Raise ValueError unless `batch` has the tree, shapes and dtypes of the stored batches."""
    got: Any = jax.tree.structure(batch)
    want: Any = jax.tree.structure(buffer)
    if got != want:
        raise ValueError(
            f"batch must have the tree of the batches in state.buffer: got {got}, want {want}"
        )
    held = leaves_by_name(buffer)
    for path, leaf in leaves_by_name(batch).items():
        kind, wanted = (
            (jnp.shape(leaf), jnp.result_type(leaf)),
            (held[path].shape[1:], held[path].dtype),
        )
        if kind != wanted:
            raise ValueError(
                f"batch[{path}] is {kind[1]} of shape {kind[0]}, state.buffer holds {wanted[1]} "
                f"of shape {wanted[0]}"
            )
