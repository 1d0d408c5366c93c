"""Loss functions over a model's `apply`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.checks import scalar_loss


def cross_entropy(model: Any) -> Callable:
    """The mean cross-entropy of a classifier, with its accuracy.

    ``L = -1/n sum_i log softmax(f(x_i))[y_i]``

    The labels are compared as one-hot rows: gathering by label would put a scatter into the
    gradient, which accelerators run slowly.

    Args:
      model: has `apply(params, images) -> logits [n, ways]`.

    Returns:
      `loss_fn(params, (images, labels)) -> (loss, {"accuracy": ...})`; images floating
      [n, h, w, c], labels integer [n] in [0, ways).

    Raises:
      ValueError: (from `loss_fn`) logits and labels do not fit together.
      TypeError: (from `loss_fn`) the labels are not integers.

    Example:
      >>> model = jaxsparse.nn.mlp(ways=5)
      >>> loss_fn = jaxsparse.cross_entropy(model)

    Source: Finn et al. 2017, MAML, Eq. 3.
    """

    def loss_fn(params, batch):
        images, labels = batch
        logits = model.apply(params, images)
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"labels have shape {labels.shape}, logits {logits.shape}; want [n] and [n, ways]"
            )
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        one_hot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
        log_likelihood = jnp.sum(one_hot * jax.nn.log_softmax(logits), axis=1)
        accuracy = jnp.mean((logits.argmax(1) == labels).astype(jnp.float32))
        return -jnp.mean(log_likelihood), {"accuracy": accuracy}

    return loss_fn


def weighted_loss(loss_fn: Callable, rows: Any, weights: jax.Array | None) -> Callable:
    """A loss of the parameters alone: that of all rows at once, or of each by its weight.

    ``sum_i w_i L(params; row_i) / sum_i w_i``

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`: a mean over rows.
      rows: a tree whose leaves lead with one axis of rows [n, ...].
      weights: [n], floating, not negative, not all zero; None: all rows alike, in one call.

    Returns:
      `params -> (loss, metrics)`.

    Example:
      >>> loss = weighted_loss(lambda w, x: jnp.mean((x - w) ** 2), jnp.arange(3.0), jnp.ones(3))
      >>> float(loss(1.0)[0]) == 2 / 3
      True

    Source: a weighted mean.
    """
    loss_fn = scalar_loss(loss_fn)
    if weights is None:
        return lambda params: loss_fn(params, rows)
    single_rows = jax.tree.map(lambda x: x[:, None], rows)
    shares = weights / weights.sum()

    def weighted(params):
        losses = jax.vmap(loss_fn, (None, 0))(params, single_rows)
        return jax.tree.map(lambda x: jnp.dot(shares, x), losses)

    return weighted
