"""The cross-entropy of a classifier as a loss of parameters and a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.checks import described, is_array, is_traced
from jaxsparse.clipping import common_dtype
from jaxsparse.precision import float32_by_default

MOMENTUM = 0.1  # of running statistics, PyTorch's default
_MOMENTS = "moments"  # the metric that holds the statistics of an inner step


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

    Examples:
      >>> split = jaxsparse.cross_entropy(jaxsparse.nn.mlp(ways=5)).split
      >>> split.kernel
      'dense1/kernel'
    """

    kernel: str
    split: Callable
    loss_fn: Callable


@dataclasses.dataclass(frozen=True, eq=False)  # equal only to itself, like a function
class CrossEntropy:
    model: Any
    rowwise: bool | None

    @float32_by_default
    def __call__(self, params, batch):
        return _mean(*self._of_rows(params, batch))

    @float32_by_default
    def weighted(self, params, batch, shares):
        """The loss and metrics with `shares` [n] as the weights of the rows instead of 1 / n."""
        of_rows = self._of_rows if self.rowwise else self._one_by_one
        losses, hits = of_rows(params, batch)
        return dot(shares, losses), {"accuracy": dot(shares, hits)}

    def prepared(self, batch):
        """The batch, with what the network needs of it whatever its parameters."""
        images, labels = _pair(batch)
        prepare = getattr(self.model, "prepare", None)
        return batch if prepare is None else (prepare(images), labels)

    def logits(self, params, task, inner):
        """The logits of a task's query images."""
        images, _ = _pair(task[1])
        return self.model.apply(params, images)

    def _of_rows(self, params, batch):
        images, labels = _pair(batch)
        return _losses_and_hits(self.model.apply(params, images), labels)

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
            CrossEntropy(layer, self.rowwise),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class NonTransductive(CrossEntropy):
    """The loss of a network whose query set is not normalised by its own statistics.

    `batch_norm` is "support" or "running"; see `losses.cross_entropy`.
    """

    batch_norm: str = "support"

    @property
    def vector_metrics(self) -> tuple[str, ...]:
        """The metrics that are not scalars."""
        return (_MOMENTS,) if self.batch_norm == "running" else ()

    @float32_by_default
    def __call__(self, params, batch):
        if self.batch_norm == "support":
            return super().__call__(params, batch)
        images, labels = _pair(batch)
        logits, moments = self.model.with_moments(params, images, None)
        loss, metrics = _mean(*_losses_and_hits(logits, labels))
        return loss, {**metrics, _MOMENTS: moments}

    @float32_by_default
    def query_loss(self, params, task, inner):
        """The loss of the query set, normalised by the statistics of the support set."""
        _, labels = _pair(task[1])
        return _mean(*_losses_and_hits(self.logits(params, task, inner), labels))

    def logits(self, params, task, inner):
        (support, _), (query, _) = map(_pair, task)
        if self.batch_norm == "running":
            moments = _running_average(inner[_MOMENTS])
        else:
            _, moments = self.model.with_moments(params, support, None)
        return self.model.with_moments(params, query, moments)[0]


def _running_average(steps):
    """``r <- (1 - momentum) r + momentum s_k`` from r = s_0, with unbiased variances."""
    count = len(jax.tree.leaves(steps)[0])
    if not count:
        raise ValueError("batch_norm: 'running' averages over inner steps, got 0 of them")
    later = MOMENTUM * (1 - MOMENTUM) ** np.arange(count - 2, -1, -1)
    weights = jnp.asarray([(1 - MOMENTUM) ** (count - 1), *later], jnp.float32)

    def average(moment):
        unbiased = moment.variance * (moment.entries / (moment.entries - 1))[:, None]
        return moment._replace(
            mean=jnp.tensordot(weights, moment.mean, 1),
            variance=jnp.tensordot(weights, unbiased, 1),
        )

    return [average(moment) for moment in steps]


def _pair(batch):
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"batch must be a pair (images, labels), got {described(batch)}")
    return batch


def _mean(losses, hits):
    return jnp.mean(losses), {"accuracy": jnp.mean(hits)}


def _losses_and_hits(logits, labels):
    """The loss of each row, and 1 if its prediction is right."""
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


def dot(shares, values):
    wide = common_dtype(shares, values)
    return jnp.dot(shares.astype(wide), values.astype(wide))
