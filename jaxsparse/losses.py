"""Loss functions."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxsparse._classifier import CrossEntropy, NonTransductive, SplitLoss, dot
from jaxsparse.checks import check_like_rows, check_rows, check_weights, described, scalar_loss

__all__ = [
    "BatchNorm",
    "SplitLoss",
    "check_one_batch",
    "check_weighable",
    "cross_entropy",
    "query_loss",
    "weighted_loss",
]


BatchNorm = Literal["transductive", "support", "running"]


def cross_entropy(model: Any, batch_norm: BatchNorm = "transductive") -> Callable:
    """The mean cross-entropy of a classifier, and its accuracy.

    ``L = -1/n sum_i log softmax(f(x_i))[y_i]``

    Labels are converted to one-hot rows. Indexing by label would put a scatter into the gradient,
    which is slow on accelerators.

    Args:
      model: has `apply(params, images) -> logits [n, ways]`. It may have an attribute `rowwise`:
        True if the logits of an image depend on that image alone, False if not (batch norm).
      batch_norm: which statistics normalise the query set in `sparse_maml_step` and `evaluate`.
        The support set is always normalised by its own. "transductive": those of the query set.
        "support": those of the support set at phi_K. "running": a running average over the inner
        steps, ``r <- 0.9 r + 0.1 s_k`` from r = s_0, with unbiased variances; it is a constant for
        the meta-gradient. The last two need `model.with_moments`.

    Returns:
      `loss_fn(params, (images, labels)) -> (loss, {"accuracy": ...})`, with images floating
      [n, h, w, c] and labels integer [n] in [0, ways). Traced labels cannot be checked: one outside
      [0, ways) then makes the loss and the gradient NaN. `loss_fn.rowwise` is `model.rowwise`, or
      None if the model has none.

    Raises:
      ValueError: from `loss_fn`: logits and labels do not fit together, or a label that is not
        traced is outside [0, ways).
      ValueError: `batch_norm` is unknown, or the model has no batch norm to apply it to.
      TypeError: the model has no `apply`. From `loss_fn`: the batch is not a pair, the labels are
        not integers, or the logits are not floating.

    Examples:
      >>> model = jaxsparse.nn.mlp(ways=5)
      >>> loss_fn = jaxsparse.cross_entropy(model)

    Source: Finn et al. 2017, MAML, Eq. 3; von Oswald, Zhao et al. 2021, Table S3, for batch norm
      that is not transductive.
    """
    if not callable(getattr(model, "apply", None)):
        raise TypeError(f"model must have apply(params, images), got {described(model)}")
    if batch_norm == "transductive":
        return CrossEntropy(model, getattr(model, "rowwise", None))
    if batch_norm not in get_args(BatchNorm):
        raise ValueError(f"batch_norm must be one of {get_args(BatchNorm)}, got {batch_norm!r}")
    if getattr(model, "with_moments", None) is None:
        raise ValueError(
            f"batch_norm: got {batch_norm!r} for a model without `with_moments`; networks of "
            "jaxsparse.nn with batch norm have it"
        )
    return NonTransductive(model, False, batch_norm)


def check_one_batch(loss_fn: Callable | None) -> None:
    """Raise ValueError if the loss of a query set needs its support set: a stream has none."""
    if getattr(loss_fn, "query_loss", None) is not None:
        got = getattr(loss_fn, "batch_norm", "a loss with query_loss")
        raise ValueError(
            f"loss_fn: batch_norm must be 'transductive' on a stream, which has no support sets;"
            f" got {got!r}"
        )


def query_loss(loss_fn: Callable, params: Any, task: Any, inner: Any) -> tuple[Any, dict]:
    """The loss on the query set of a task, and its metrics.

    A loss function may have a `query_loss(params, (support, query), inner)` for it, where `inner`
    has the losses and metrics of the inner steps, [K, ...] each.
    """
    own = getattr(loss_fn, "query_loss", None)
    return scalar_loss(loss_fn)(params, task[1]) if own is None else own(params, task, inner)


def weighted_loss(loss_fn: Callable, rows: Any, weights: jax.Array | None) -> Callable:
    """The weighted mean of the rows' losses, as a function of the parameters.

    ``sum_i w_i L(params; row_i) / sum_i w_i``

    If the loss has a method `weighted(params, rows, shares)`, as `cross_entropy` has, this is
    called. Otherwise the loss is vmapped over the rows. That is correct only if the loss is a mean
    over independent rows. A loss with `rowwise = False` declares that it is not, and cannot be
    weighted.

    Args:
      loss_fn: `(params, rows) -> scalar`, or `-> (scalar, dict of scalars)`: a mean over rows.
      rows: a tree whose leaves have a leading row axis [n, ...].
      weights: [n], floating, not negative, not all zero. None: `loss_fn` is called on all rows.

    Returns:
      `params -> (loss, metrics)`.

    Raises:
      ValueError: weights for a loss whose `rowwise` is False.

    Examples:
      >>> weights = jnp.array([1.0, 0.0, 1.0])
      >>> loss = weighted_loss(lambda w, x: jnp.mean((x - w) ** 2), jnp.arange(3.0), weights)
      >>> float(loss(1.0)[0])
      1.0

    Source: a weighted mean.
    """
    whole = scalar_loss(loss_fn)
    if weights is None:
        return lambda params: whole(params, rows)
    check_weighable("weights", loss_fn)
    shares = weights / weights.sum()
    together = getattr(loss_fn, "weighted", None)
    if together is not None:
        return lambda params: together(params, rows, shares)
    single_rows = jax.tree.map(lambda x: x[:, None], rows)

    def row_by_row(params):
        losses = jax.vmap(whole, (None, 0))(params, single_rows)
        return jax.tree.map(lambda x: dot(shares, x), losses)

    return row_by_row


def with_replay(
    batch: Any, replay: Any, weights: Any, loss_fn: Callable
) -> tuple[Any, jax.Array | None]:
    """Replayed rows and a batch as one set of rows, and the rows' weights for `weighted_loss`.

    Args:
      batch: rows, leaves [n, ...]; each has weight 1.
      replay: rows like those of `batch`, leaves [r, ...]; None without replay.
      weights: the step's `replay_weights`, [r]; None: all rows have the same weight.
      loss_fn: the loss that is to be weighted.

    Returns:
      The rows [r + n, ...] and their weights [r + n], or None without weights.

    Raises:
      TypeError, ValueError: trees, shapes or dtypes do not fit, or the loss cannot be weighted.

    Examples:
      >>> loss_fn = lambda w, x: jnp.mean(w * x)
      >>> rows, weights = with_replay(jnp.ones(2), jnp.zeros(1), [0.5], loss_fn)
      >>> rows.tolist(), weights.tolist()
      ([0.0, 1.0, 1.0], [0.5, 1.0, 1.0])
    """
    if replay is None:
        if weights is not None:
            raise ValueError("replay_weights: got weights, want None: replay is None")
        return batch, None
    drawn = check_like_rows("replay", replay, "batch", batch)
    rows = jax.tree.map(lambda r, b: jnp.concatenate([r, b]), replay, batch)
    if weights is None:
        return rows, None
    weights = check_weights("replay_weights", weights, drawn)
    check_weighable("replay_weights", loss_fn)
    (count,) = check_rows("batch", batch)
    return rows, jnp.concatenate([weights, jnp.ones(count, weights.dtype)])


def check_weighable(name: str, loss_fn: Callable) -> None:
    """Raise ValueError if `loss_fn` declares that its rows are not independent."""
    if getattr(loss_fn, "rowwise", None) is False:
        raise ValueError(
            f"{name}: got weights, want None: the loss uses statistics over its rows (batch norm), "
            "which a row changes even with weight 0; leave out rows instead of weighting them"
        )
