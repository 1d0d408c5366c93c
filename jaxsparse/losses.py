"""Loss functions."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.checks import described, is_array, is_traced, scalar_loss
from jaxsparse.clipping import common_dtype
from jaxsparse.precision import float32_by_default


def cross_entropy(model: Any) -> Callable:
    """The mean cross-entropy of a classifier, and its accuracy.

    ``L = -1/n sum_i log softmax(f(x_i))[y_i]``

    Labels are converted to one-hot rows. Indexing by label would put a scatter into the gradient,
    which is slow on accelerators.

    Args:
      model: has `apply(params, images) -> logits [n, ways]`. It may have an attribute `rowwise`:
        True if the logits of an image depend on that image alone, False if not (batch norm).

    Returns:
      `loss_fn(params, (images, labels)) -> (loss, {"accuracy": ...})`, with images floating
      [n, h, w, c] and labels integer [n] in [0, ways). Traced labels cannot be checked: one outside
      [0, ways) then makes the loss and the gradient NaN. `loss_fn.rowwise` is `model.rowwise`, or
      None if the model has none.

    Raises:
      ValueError: from `loss_fn`: logits and labels do not fit together, or a label that is not
        traced is outside [0, ways).
      TypeError: the model has no `apply`. From `loss_fn`: the batch is not a pair, the labels are
        not integers, or the logits are not floating.

    Example:
      >>> model = jaxsparse.nn.mlp(ways=5)
      >>> loss_fn = jaxsparse.cross_entropy(model)

    Source: Finn et al. 2017, MAML, Eq. 3.
    """
    if not callable(getattr(model, "apply", None)):
        raise TypeError(f"model must have apply(params, images), got {described(model)}")
    return _CrossEntropy(model, getattr(model, "rowwise", None))


class SplitLoss(NamedTuple):
    """A loss split after the first matrix product of its network.

    ``L(params; rows) = loss_fn(params; (inputs @ kernel, others))`` with
    ``inputs, others = split(rows)``

    A loss function that can be split has this as its attribute `split`. `lamaml_step`, `gem_step`
    and `mer_step` are faster with it.

    Attributes:
      kernel: the path of the kernel [in, out] in params, such as "dense1/kernel".
      split: rows -> (inputs [n, in], others), computed for each row independently.
      loss_fn: (params, (products [n, out], others)) -> the output of the loss. It does not use the
        kernel.

    Example:
      >>> split = jaxsparse.cross_entropy(jaxsparse.nn.mlp(ways=5)).split
      >>> split.kernel
      'dense1/kernel'
    """

    kernel: str
    split: Callable
    loss_fn: Callable


@dataclasses.dataclass(frozen=True, eq=False)  # equal only to itself, like a function
class _CrossEntropy:
    model: Any
    rowwise: bool | None

    @float32_by_default
    def __call__(self, params, batch):
        losses, hits = self._of_rows(params, batch)
        return jnp.mean(losses), {"accuracy": jnp.mean(hits)}

    @float32_by_default
    def weighted(self, params, batch, shares):
        """The loss and metrics with `shares` [n] as the weights of the rows instead of 1 / n."""
        of_rows = self._of_rows if self.rowwise else self._one_by_one
        losses, hits = of_rows(params, batch)
        return _dot(shares, losses), {"accuracy": _dot(shares, hits)}

    def _of_rows(self, params, batch):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"batch must be a pair (images, labels), got {described(batch)}")
        images, labels = batch
        logits = self.model.apply(params, images)
        if not is_array(logits) or not jnp.issubdtype(jnp.result_type(logits), jnp.floating):
            raise TypeError(f"model.apply must return floating logits, got {described(logits)}")
        labels = _checked_labels(labels, logits.shape)
        ways = logits.shape[1]
        # The one-hot row of an invalid label is zero, which would hide the error: no loss and no
        # gradient. The NaN is added twice, as XLA simplifies a product with a zero row to zero.
        known = (labels >= 0) & (labels < ways)
        lost = jnp.where(known, 0.0, jnp.nan).astype(logits.dtype)
        one_hot = jax.nn.one_hot(labels, ways, dtype=logits.dtype)
        log_odds = jax.nn.log_softmax(logits + lost[:, None])
        log_likelihoods = jnp.sum(one_hot * log_odds, axis=1) + lost
        hits = jax.lax.argmax(logits, 1, labels.dtype) == labels
        return -log_likelihoods, hits.astype(jnp.float32)

    def _one_by_one(self, params, batch):
        single_rows = jax.tree.map(lambda x: x[:, None], batch)
        of_rows = jax.vmap(self._of_rows, (None, 0))(params, single_rows)
        return jax.tree.map(lambda x: x[:, 0], of_rows)

    @property
    def split(self) -> SplitLoss | None:
        layer = getattr(self.model, "input_layer", None)
        if layer is None:
            return None
        return SplitLoss(
            layer.kernel,
            lambda rows: (layer.inputs(rows[0]), rows[1]),
            _CrossEntropy(layer, self.rowwise),
        )


def _checked_labels(labels, logits_shape):
    """The labels as int32 or int64, after checking that they fit the logits."""
    if not hasattr(labels, "dtype"):
        try:
            labels = jnp.asarray(labels)
        except (TypeError, ValueError) as error:
            raise TypeError(f"labels must be integers [n], got {described(labels)}") from error
    if len(logits_shape) != 2 or labels.shape != logits_shape[:1]:
        raise ValueError(
            f"labels have shape {labels.shape}, logits {logits_shape}; want [n] and [n, ways]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if not is_traced(labels):
        outside = np.asarray(labels)
        outside = outside[(outside < 0) | (outside >= logits_shape[1])]
        if outside.size:
            raise ValueError(f"labels must lie in [0, {logits_shape[1]}), got {outside[0]}")
    labels = jnp.asarray(labels)
    # In int8, class numbers above 127 would wrap around.
    return labels if labels.dtype.itemsize == 8 else labels.astype(jnp.int32)


def _dot(shares, values):
    wide = common_dtype(shares, values)
    return jnp.dot(shares.astype(wide), values.astype(wide))


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

    Example:
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
        return jax.tree.map(lambda x: _dot(shares, x), losses)

    return row_by_row


def check_weighable(name: str, loss_fn: Callable) -> None:
    """Raise ValueError if `loss_fn` declares that its rows are not independent."""
    if getattr(loss_fn, "rowwise", None) is False:
        raise ValueError(
            f"{name}: got weights, want None: the loss uses statistics over its rows (batch norm), "
            "which a row changes even with weight 0; leave out rows instead of weighting them"
        )
