"""What a configuration names as a learner: how it starts, what a batch changes, how it predicts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse import gates, losses, nn
from jaxsparse.continual import buffer
from jaxsparse.continual.er import er_step, init_online_state
from jaxsparse.continual.gem import agem_step, gem_step
from jaxsparse.continual.mer import mer_step
from jaxsparse.gates import Gate
from jaxsparse.lamaml import init_lamaml_state, lamaml_step
from jaxsparse.training import settings
from jaxsparse.training.continual.config import META_METHODS, ContinualConfig
from jaxsparse.training.errors import ConfigError

Tree = Any
Metrics = dict[str, jax.Array]


class Rates(NamedTuple):
    """The rates of a run, arrays so that runs of different rates can share one program."""

    inner_lr: Any
    mask_lr: Any
    theta_lr: Any


class Arrival(NamedTuple):
    """A batch of the stream.

    Attributes:
      rows: (images uint8 [b, h, w, c], labels int32 [b]).
      task: int32, the task it belongs to.
      first_pass: bool, whether its rows are seen for the first time: then they are remembered.
    """

    rows: Any
    task: jax.Array
    first_pass: Any


class Learner(NamedTuple):
    """A method as pure functions.

    Attributes:
      init: `(key, rates) -> state`.
      init_memory: `row -> memory`; a row is (image, label).
      learn: `(state, memory, arrival, key, rates) -> (state, memory, metrics)`.
      predict: `(state, images) -> logits`.
      step_sizes: `(state, rates) -> tree` of the gate's step sizes; None where there is no gate.
    """

    init: Callable[[jax.Array, Rates], Tree]
    init_memory: Callable[[Any], Tree]
    learn: Callable[[Tree, Tree, Arrival, jax.Array, Rates], tuple[Tree, Tree, Metrics]]
    predict: Callable[[Tree, jax.Array], jax.Array]
    step_sizes: Callable[[Tree, Rates], Tree] | None


def default_rates(config: ContinualConfig) -> Rates:
    """The rates that a configuration names.

    Args:
      config: the run's configuration.

    Returns:
      `Rates` of Python numbers.

    Example:
      >>> default_rates(ContinualConfig(inner_lr=0.1)).inner_lr
      0.1
    """
    return Rates(config.inner_lr, config.mask_lr, config.theta_lr)


def used_rates(config: ContinualConfig) -> tuple[str, ...]:
    """The rates that a configuration's numbers depend on, fields of `Rates`.

    Args:
      config: the run's configuration.

    Returns:
      Their names, in the order of `Rates`.

    Example:
      >>> used_rates(ContinualConfig(method="cmaml-sync"))
      ('inner_lr', 'theta_lr')
    """
    if config.method not in META_METHODS:
        return ("theta_lr",)
    # Learned rates only start at inner_lr, and not even that where mask_init says otherwise.
    starts_elsewhere = config.mask_init != "auto"
    read = {
        "inner_lr": config.method in ("sparse-lamaml", "cmaml-sync") or not starts_elsewhere,
        "mask_lr": config.method != "cmaml-sync",
        "theta_lr": config.method in ("sync-lamaml", "cmaml-sync"),
    }
    return tuple(name for name in Rates._fields if read[name])


def make_model(config: ContinualConfig, data: Any) -> nn.Model:
    """The network that `config` names, on pixels 0 to 255.

    Args:
      config: the run's configuration.
      data: a `LabelledSet`, which says the images' shape and scale and the number of classes.

    Returns:
      A `Model`.

    Raises:
      ConfigError: images too small for the network.

    Example:
      >>> model = make_model(ContinualConfig(), data.load_labelled("glyphs", "train"))
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


def make_learner(config: ContinualConfig, data: Any) -> Learner:
    """The method that `config` names.

    Args:
      config: the run's configuration.
      data: a `LabelledSet`: its images' shape and scale, its number of classes.

    Returns:
      A `Learner`.

    Raises:
      ConfigError: images too small for the network.

    Example:
      >>> learner = make_learner(ContinualConfig(), data.load_labelled("glyphs", "train"))
    """
    model = make_model(config, data)
    if config.method in META_METHODS:
        return _meta_learner(config, model)
    return _plain_learner(config, model)


def make_gate(config: ContinualConfig, rates: Rates) -> Gate:
    """The gate of `config.method`: an algorithm is a gate.

    Args:
      config: the run's configuration.
      rates: its rates.

    Returns:
      A `Gate`.

    Example:
      >>> gate = make_gate(ContinualConfig(), default_rates(ContinualConfig()))
    """
    init = settings.parse_init(config.mask_init)
    init = rates.inner_lr if init == "auto" else init
    if config.method == "sparse-lamaml":
        return gates.binary(rates.inner_lr, slope=config.slope, init=init)
    if config.method == "cmaml-sync":
        return gates.constant(rates.inner_lr)
    return gates.rectified(init)


def _meta_learner(config, model):
    loss_fn = losses.cross_entropy(model)
    learned_rates = config.method in ("lamaml", "sync-lamaml")
    raw = learned_rates and config.inner_rates == "raw"
    inner_gate = gates.linear(config.inner_lr) if raw else None

    def parts(rates):
        gated_theta = config.method in ("sparse-lamaml", "lamaml")
        return {
            "gate": make_gate(config, rates),
            "mask_optimizer": (None if config.method == "cmaml-sync" else optax.sgd(rates.mask_lr)),
            "theta_optimizer": None if gated_theta else optax.sgd(rates.theta_lr),
        }

    def init(key, rates):
        model_key, mask_key = jax.random.split(key)
        return init_lamaml_state(model.init(model_key), key=mask_key, **parts(rates))

    def learn(state, memory, arrival, key, rates):
        learner = parts(rates)

        def glance(carry, index):
            state, memory = carry
            replay_key, step_key, memory_key = jax.random.split(jax.random.fold_in(key, index), 3)
            # Drawn before the batch's own rows are added, so that the first glance at the first
            # batch has none: their weights are 0.
            replay, weights = buffer.sample(memory, replay_key, config.replay_batch_size)
            state, metrics = lamaml_step(
                state,
                arrival.rows,
                replay,
                step_key,
                loss_fn=loss_fn,
                replay_weights=weights,
                inner_gate=inner_gate,
                inner_batch_size=config.inner_batch_size,
                inner_clip=config.inner_clip,
                second_order=config.second_order,
                clip_norm=config.clip_norm,
                meta_iterates=config.meta_iterates,
                gradient_sum=config.gradient_sum,
                **learner,
            )
            in_order = jax.tree.map(lambda x: x[metrics["order"]], arrival.rows)
            memory = buffer.add(memory, in_order, memory_key, arrival.first_pass & (index == 0))
            return (state, memory), {name: metrics[name] for name in ("loss", "accuracy")}

        (state, memory), metrics = jax.lax.scan(glance, (state, memory), jnp.arange(config.glances))
        return state, memory, jax.tree.map(jnp.mean, metrics)

    return Learner(
        init=init,
        init_memory=lambda row: buffer.init_buffer(row, config.memories),
        learn=learn,
        predict=lambda state, images: model.apply(state.params, images),
        step_sizes=lambda state, rates: make_gate(config, rates).apply(state.mask, None),
    )


def _plain_learner(config, model):
    """Methods whose state is theta and its optimiser; they differ in what they remember."""
    loss_fn = losses.cross_entropy(model)
    step, remember, init_memory = _PLAIN[config.method](config, loss_fn)

    def init(key, rates):
        return init_online_state(model.init(key), optax.sgd(rates.theta_lr))

    def learn(state, memory, arrival, key, rates):
        def glance(state, index):
            glance_key = jax.random.fold_in(key, index)
            state, metrics = step(state, memory, arrival, glance_key, rates)
            return state, {name: metrics[name] for name in ("loss", "accuracy")}

        state, metrics = jax.lax.scan(glance, state, jnp.arange(config.glances))
        memory = remember(memory, arrival, jax.random.fold_in(key, config.glances))
        return state, memory, jax.tree.map(jnp.mean, metrics)

    rows_in_turn = config.method == "mer" and config.batch_size > 1
    return Learner(
        init=init,
        init_memory=init_memory,
        learn=_row_by_row(learn) if rows_in_turn else learn,
        predict=lambda state, images: model.apply(state.params, images),
        step_sizes=None,
    )


def _row_by_row(learn):
    """`learn` for each row of a batch in turn, which is remembered before the next one's."""

    def learn_batch(state, memory, arrival, key, rates):
        def turn(carry, place_and_row):
            place, row = place_and_row
            own = arrival._replace(rows=jax.tree.map(lambda x: x[None], row))
            state, memory, metrics = learn(*carry, own, jax.random.fold_in(key, place), rates)
            return (state, memory), metrics

        places = jnp.arange(len(arrival.rows[1]))
        (state, memory), metrics = jax.lax.scan(turn, (state, memory), (places, arrival.rows))
        return state, memory, jax.tree.map(jnp.mean, metrics)

    return learn_batch


def _without_memory(config, loss_fn):
    def step(state, memory, arrival, key, rates):
        return er_step(
            state,
            arrival.rows,
            None,
            loss_fn=loss_fn,
            optimizer=optax.sgd(rates.theta_lr),
            clip_norm=config.clip_norm,
        )

    return step, lambda memory, arrival, key: memory, lambda row: ()


def _reservoir(config):
    def remember(memory, arrival, key):
        return buffer.add(memory, arrival.rows, key, arrival.first_pass)

    return remember, lambda row: buffer.init_buffer(row, config.memories)


def _er(config, loss_fn):
    def step(state, memory, arrival, key, rates):
        replay, weights = buffer.sample(memory, key, config.replay_batch_size)
        return er_step(
            state,
            arrival.rows,
            replay,
            loss_fn=loss_fn,
            optimizer=optax.sgd(rates.theta_lr),
            replay_weights=weights,
            clip_norm=config.clip_norm,
        )

    return step, *_reservoir(config)


def _mer(config, loss_fn):
    def step(state, memory, arrival, key, rates):
        keys = jax.random.split(key, config.replay_passes)
        replay, weights = jax.vmap(lambda k: buffer.sample(memory, k, config.replay_batch_size))(
            keys
        )
        return mer_step(
            state,
            arrival.rows,
            replay,
            weights,
            loss_fn=loss_fn,
            learning_rate=rates.theta_lr,
            within_batch_rate=config.within_rate,
            across_batch_rate=config.across_rate,
            clip_norm=config.clip_norm,
        )

    return step, *_reservoir(config)


def _task_memory(config):
    def remember(memory, arrival, key):
        return buffer.write(memory, arrival.task, arrival.rows, arrival.first_pass)

    slots = config.memory_per_task or config.memories // config.tasks
    return remember, lambda row: buffer.init_memory(row, config.tasks, slots)


def _gem(config, loss_fn):
    def step(state, memory, arrival, key, rates):
        return gem_step(
            state,
            arrival.rows,
            memory.rows,
            arrival.task,
            loss_fn=loss_fn,
            optimizer=optax.sgd(rates.theta_lr),
            margin=config.margin,
            clip_norm=config.clip_norm,
        )

    return step, *_task_memory(config)


def _agem(config, loss_fn):
    def step(state, memory, arrival, key, rates):
        rows, weights = buffer.sample_earlier(memory, arrival.task, key, config.replay_batch_size)
        return agem_step(
            state,
            arrival.rows,
            rows,
            weights,
            loss_fn=loss_fn,
            optimizer=optax.sgd(rates.theta_lr),
            clip_norm=config.clip_norm,
        )

    return step, *_task_memory(config)


_PLAIN = {
    "er": _er,
    "mer": _mer,
    "gem": _gem,
    "agem": _agem,
    "sgd": _without_memory,
    "iid": _without_memory,
}
