"""The learner that a configuration describes, with its replay memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse import gates, losses, nn
from jaxsparse.continual import buffer
from jaxsparse.continual.learners import agem, er, gem, mer
from jaxsparse.gates import Gate
from jaxsparse.learner import Learner, StreamBatch
from jaxsparse.learners import lamaml
from jaxsparse.training import settings
from jaxsparse.training.continual.config import (
    META_METHODS,
    TASK_MEMORY_METHODS,
    ContinualConfig,
)
from jaxsparse.training.errors import ConfigError

Tree = Any
Metrics = dict[str, jax.Array]


class Rates(NamedTuple):
    """The learning rates of a run; as arrays, runs with different rates can share a program."""

    inner_lr: Any
    mask_lr: Any
    theta_lr: Any


class TaskBatch(NamedTuple):
    """A batch of the stream, without replayed rows.

    Attributes:
      rows: (images uint8 [b, h, w, c], labels int32 [b]).
      task: int32, its task.
      first_pass: bool, whether the rows are seen for the first time; only then they are stored.
    """

    rows: Any
    task: jax.Array
    first_pass: Any


class StreamLearner(NamedTuple):
    """A method and its memory as pure functions. The rates are an argument, not fixed.

    Attributes:
      init: `(key, rates) -> state`.
      init_memory: `row -> memory`; a row is (image, label).
      learn: `(state, memory, batch, key, rates) -> (state, memory, metrics)`.
      predict: `(state, images) -> logits`.
      step_sizes: `(state, rates) -> tree` of the gate's step sizes; None for methods without a
        gate.
    """

    init: Callable[[jax.Array, Rates], Tree]
    init_memory: Callable[[Any], Tree]
    learn: Callable[[Tree, Tree, TaskBatch, jax.Array, Rates], tuple[Tree, Tree, Metrics]]
    predict: Callable[[Tree, jax.Array], jax.Array]
    step_sizes: Callable[[Tree, Rates], Tree] | None


def default_rates(config: ContinualConfig) -> Rates:
    """The rates of a configuration, as Python numbers."""
    return Rates(config.inner_lr, config.mask_lr, config.theta_lr)


def used_rates(config: ContinualConfig) -> tuple[str, ...]:
    """The names of the rates that the results of a configuration depend on.

    Examples:
      >>> used_rates(ContinualConfig(method="cmaml-sync"))
      ('inner_lr', 'theta_lr')
    """
    if config.method not in META_METHODS:
        return ("theta_lr",)
    # With a learned rate, inner_lr is only its initial value, and only if mask_init is "auto".
    starts_elsewhere = config.mask_init != "auto"
    read = {
        "inner_lr": config.method in ("sparse-lamaml", "cmaml-sync") or not starts_elsewhere,
        "mask_lr": config.method != "cmaml-sync",
        "theta_lr": config.method in ("sync-lamaml", "cmaml-sync"),
    }
    return tuple(name for name in Rates._fields if read[name])


def make_model(config: ContinualConfig, data: Any) -> nn.Model:
    """The network of `config`, for pixels from 0 to 255; ConfigError if the images are too small.

    `data` is a `LabelledSet`: its image shape, scale and number of classes are used.
    """
    shape, ways = data.images.shape[1:], data.num_classes
    try:
        if config.network == "mlp":
            model = nn.mlp(ways, (config.width,) * 2, shape, init=config.init)
        else:
            layers = 4 if config.network == "cnn4" else 3
            units = (4 if layers == 4 else 2) * config.width  # 640 and 320 at 160 channels
            model = nn.strided_cnn(
                ways, config.width, layers, (units, units), shape, init=config.init
            )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return nn.normalised(model, data.mean, data.std)


def make_learner(config: ContinualConfig, data: Any) -> StreamLearner:
    """The learner of `config`; see `make_model` for `data` and errors."""
    model = make_model(config, data)
    if config.method in META_METHODS:
        return _meta_learner(config, model)
    return _plain_learner(config, model)


def make_gate(config: ContinualConfig, rates: Rates) -> Gate:
    """The gate of `config.method`."""
    init = settings.parse_init(config.mask_init)
    init = rates.inner_lr if init == "auto" else init
    if config.method == "sparse-lamaml":
        return gates.binary(rates.inner_lr, slope=config.slope, init=init)
    if config.method == "cmaml-sync":
        return gates.constant(rates.inner_lr)
    return gates.rectified(init)


def _meta_learner(config, model):
    loss_fn = losses.cross_entropy(model)

    def init(key, rates):
        model_key, mask_key = jax.random.split(key)
        return _lamaml(config, loss_fn, rates).init(model.init(model_key), mask_key)

    def learn(state, memory, batch, key, rates):
        learner = _lamaml(config, loss_fn, rates)

        def glance(carry, index):
            state, memory = carry
            replay_key, step_key, memory_key = jax.random.split(jax.random.fold_in(key, index), 3)
            # Sampled before the rows of the batch are added: at the first glance at the first
            # batch the memory is empty, and all replay weights are 0.
            drawn = StreamBatch(batch.rows, *_replayed(config, memory, batch, replay_key))
            state, metrics = learner.step(state, drawn, step_key)
            in_order = jax.tree.map(lambda x: x[metrics["order"]], batch.rows)
            memory = buffer.add(memory, in_order, memory_key, batch.first_pass & (index == 0))
            return (state, memory), {name: metrics[name] for name in ("loss", "accuracy")}

        (state, memory), metrics = jax.lax.scan(glance, (state, memory), jnp.arange(config.glances))
        return state, memory, jax.tree.map(jnp.mean, metrics)

    return StreamLearner(
        init=init,
        init_memory=lambda row: buffer.init_buffer(row, config.memories),
        learn=learn,
        predict=lambda state, images: model.apply(state.params, images),
        step_sizes=lambda state, rates: make_gate(config, rates).apply(state.mask, None),
    )


def _lamaml(config: ContinualConfig, loss_fn: Callable, rates: Rates) -> Learner:
    learned_rates = config.method in ("lamaml", "sync-lamaml")
    raw = learned_rates and config.inner_rates == "raw"
    gated_theta = config.method in ("sparse-lamaml", "lamaml")
    return lamaml(
        loss_fn,
        make_gate(config, rates),
        mask_optimizer=None if config.method == "cmaml-sync" else optax.sgd(rates.mask_lr),
        theta_optimizer=None if gated_theta else optax.sgd(rates.theta_lr),
        inner_gate=gates.linear(config.inner_lr) if raw else None,
        inner_batch_size=config.inner_batch_size,
        inner_clip=config.inner_clip,
        second_order=config.second_order,
        clip_norm=config.clip_norm,
        meta_iterates=config.meta_iterates,
        gradient_sum=config.gradient_sum,
    )


def _plain_learner(config, model):
    """Methods without a gate. They differ in what they store."""
    loss_fn = losses.cross_entropy(model)
    init_memory, remember = _memory(config)

    def init(key, rates):
        return _baseline(config, loss_fn, rates).init(model.init(key), key)

    def learn(state, memory, batch, key, rates):
        learner = _baseline(config, loss_fn, rates)

        def glance(state, index):
            replay = _replayed(config, memory, batch, jax.random.fold_in(key, index))
            state, metrics = learner.step(state, StreamBatch(batch.rows, *replay), None)
            return state, {name: metrics[name] for name in ("loss", "accuracy")}

        state, metrics = jax.lax.scan(glance, state, jnp.arange(config.glances))
        memory = remember(memory, batch, jax.random.fold_in(key, config.glances))
        return state, memory, jax.tree.map(jnp.mean, metrics)

    rows_in_turn = config.method == "mer" and config.batch_size > 1
    return StreamLearner(
        init=init,
        init_memory=init_memory,
        learn=_row_by_row(learn) if rows_in_turn else learn,
        predict=lambda state, images: model.apply(state.params, images),
        step_sizes=None,
    )


def _row_by_row(learn):
    """`learn` for one row of the batch after the other; each is stored before the next one."""

    def learn_batch(state, memory, batch, key, rates):
        def turn(carry, place_and_row):
            place, row = place_and_row
            own = batch._replace(rows=jax.tree.map(lambda x: x[None], row))
            state, memory, metrics = learn(*carry, own, jax.random.fold_in(key, place), rates)
            return (state, memory), metrics

        places = jnp.arange(len(batch.rows[1]))
        (state, memory), metrics = jax.lax.scan(turn, (state, memory), (places, batch.rows))
        return state, memory, jax.tree.map(jnp.mean, metrics)

    return learn_batch


def _baseline(config: ContinualConfig, loss_fn: Callable, rates: Rates) -> Learner:
    sgd, clip_norm = optax.sgd(rates.theta_lr), config.clip_norm
    if config.method == "mer":
        return mer(
            loss_fn,
            learning_rate=rates.theta_lr,
            within_batch_rate=config.within_rate,
            across_batch_rate=config.across_rate,
            clip_norm=clip_norm,
        )
    if config.method == "gem":
        return gem(loss_fn, sgd, margin=config.margin, clip_norm=clip_norm)
    method = agem if config.method == "agem" else er
    return method(loss_fn, sgd, clip_norm=clip_norm)


def _replayed(config: ContinualConfig, memory: Tree, batch: TaskBatch, key: jax.Array) -> tuple:
    """The replayed rows of a method: the fields of `StreamBatch` after `rows`."""
    size = config.replay_batch_size
    if config.method in ("sgd", "iid"):
        return ()
    if config.method == "mer":
        keys = jax.random.split(key, config.replay_passes)
        return jax.vmap(lambda key: buffer.sample(memory, key, size))(keys)
    if config.method == "gem":
        return memory.rows, None, batch.task
    if config.method == "agem":
        return buffer.sample_earlier(memory, batch.task, key, size)
    return buffer.sample(memory, key, size)


def _memory(config: ContinualConfig) -> tuple[Callable, Callable]:
    """The functions that make the memory of a baseline and store a batch in it."""
    if config.method in ("sgd", "iid"):
        return lambda row: (), lambda memory, batch, key: memory
    if config.method in TASK_MEMORY_METHODS:
        slots = config.memory_per_task or config.memories // config.tasks
        return (
            lambda row: buffer.init_memory(row, config.tasks, slots),
            lambda memory, batch, key: buffer.write(
                memory, batch.task, batch.rows, batch.first_pass
            ),
        )
    return (
        lambda row: buffer.init_buffer(row, config.memories),
        lambda memory, batch, key: buffer.add(memory, batch.rows, key, batch.first_pass),
    )
