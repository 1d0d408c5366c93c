"""The learner that a configuration describes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse import gates, losses, nn
from jaxsparse._tree import restrict
from jaxsparse.checks import path_name
from jaxsparse.continual.learners import bgd, er, metabgd
from jaxsparse.continual.online import frozen_maml_step, init_frozen_state, self_masked_loss
from jaxsparse.gates import Gate
from jaxsparse.learner import Learner, StreamBatch
from jaxsparse.learners import cmaml
from jaxsparse.nn.model import is_norm
from jaxsparse.training.errors import ConfigError
from jaxsparse.training.online.config import (
    CMAML_METHODS,
    OnlineConfig,
    parse_mask_init,
)

Tree = Any
Metrics = dict[str, jax.Array]


class Pretrained(NamedTuple):
    """The pretrained network that fine-tuning, MAML and ANIL start from.

    Attributes:
      params: theta.
      opt_state: the state of Adam at the end of the pretraining.
    """

    params: Tree
    opt_state: optax.OptState


class OnlineLearner(NamedTuple):
    """A method on a switching stream, as pure functions.

    Attributes:
      init: `(key, batch, pretrained) -> state`; only the shapes and dtypes of `batch` are used, and
        only fine-tuning, MAML and ANIL use `pretrained`.
      learn: `(state, batch, key, timestep) -> (state, metrics)`; the metrics are "loss" and
        "accuracy" before the batch is learned, and "detected", whether a new task was detected.
      step_sizes: `state -> tree` of the gate's step sizes; None if they are not learned.
    """

    init: Callable[[jax.Array, Any, Any], Tree]
    learn: Callable[[Tree, Any, jax.Array, jax.Array], tuple[Tree, Metrics]]
    step_sizes: Callable[[Tree], Tree] | None = None


def make_learner(config: OnlineConfig, image_shape: tuple[int, int, int]) -> OnlineLearner:
    """The learner of `config`. With equal keys, all methods start from the same random weights.

    Raises:
      ConfigError: the images are too small for the network, or this machine cannot run
        `config.blocks`.
    """
    try:
        model = nn.conv4(config.ways, config.width, image_shape, blocks=config.blocks)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.method in CMAML_METHODS:
        return _cmaml(config, model)
    return _BASELINES[config.method](config, model)


def make_gate(config: OnlineConfig, model: nn.Model) -> Gate:
    """The gate of `config.method`, one of the C-MAML methods.

    With `mask_init="pytorch"` the mask parameters are drawn by `model.init`, like the weights.
    """
    if config.method == "cmaml":
        return gates.per_tensor(config.inner_lr)
    if config.method == "cmaml-fixed":
        return gates.constant(config.inner_lr)
    init = parse_mask_init(config.mask_init)
    drawn_as_layers = init == "pytorch"
    own = 0.0 if drawn_as_layers else init
    if config.method == "sparse-cmaml":
        gate = gates.binary(config.inner_lr, init=own)
    else:
        gate = gates.relu(own)
    if drawn_as_layers:
        return gate._replace(init=lambda key, params: restrict(model.init(key), params))
    return gate


def inner_params(name: str) -> bool:
    """Whether the inner loop adapts a parameter: all except the gains and shifts of batch norm."""
    return not is_norm(name)


def inner_rates(config: OnlineConfig, params: Tree) -> Tree:
    """Fixed inner rates, a tree like `params` with a scalar per tensor.

    They are 0 for batch norm, and for ANIL for everything except the head.
    """

    def rate(path, x):
        name = path_name(path)
        moves = name.startswith("head") if config.method == "anil" else inner_params(name)
        return jnp.float32(config.inner_lr if moves else 0.0)

    return jax.tree_util.tree_map_with_path(rate, params)


def _cmaml(config, model):
    gate, loss_fn = make_gate(config, model), losses.cross_entropy(model)
    outer = optax.adam if config.outer_optimizer == "adam" else optax.sgd
    theta_optimizer = outer(config.theta_lr)
    mask_optimizer = None if config.method == "cmaml-fixed" else outer(config.mask_lr)

    def learner(batch):
        return cmaml(
            loss_fn,
            gate,
            batch=batch,
            inner_steps=config.inner_steps,
            theta_optimizer=theta_optimizer,
            mask_optimizer=mask_optimizer,
            detection_threshold=config.detection_threshold,
            capacity=config.capacity,
            inner_params=inner_params,
            modulation=config.modulation,
            pairs=config.pairs,
            mask_theta=config.mask_theta,
            restart_now=config.restart_now,
        )

    def init(key, batch, pretrained):
        model_key, mask_key = jax.random.split(key)
        return learner(batch).init(model.init(model_key), mask_key)

    def learn(state, batch, key, timestep):
        key = key if config.pairs == "one" else None
        state, metrics = learner(batch).step(state, StreamBatch(batch), key)
        return state, {name: metrics[name] for name in ("loss", "accuracy", "detected")}

    learned = config.method != "cmaml-fixed"
    step_sizes = (lambda state: gate.apply(state.mask, None)) if learned else None
    return OnlineLearner(init, learn, step_sizes)


def _adam(config, model):
    """Online Adam (random initial weights) and fine-tuning (pretrained ones)."""
    learner = er(losses.cross_entropy(model), optax.adam(config.theta_lr))

    def init(key, batch, pretrained):
        if config.method == "online-adam":
            return learner.init(_first_params(model, key), key)
        state = learner.init(pretrained.params, key)
        return state._replace(opt_state=pretrained.opt_state)

    return OnlineLearner(init, _skip_first_update(learner))


def _bgd(config, model):
    loss_fn = losses.cross_entropy(model)
    if config.method == "metacog":
        loss_fn = self_masked_loss(loss_fn, lambda name: name.startswith("conv"))
    learner = bgd(
        loss_fn,
        learning_rate=config.theta_lr,
        initial_std=config.initial_std,
        samples=config.samples,
    )
    return OnlineLearner(_from_first_params(learner, model), _skip_first_update(learner))


def _metabgd(config, model):
    learner = metabgd(
        losses.cross_entropy(model),
        learning_rate=config.theta_lr,
        inner_lr=config.inner_lr,
        inner_steps=config.inner_steps,
        initial_std=config.initial_std,
        samples=config.samples,
        inner_params=inner_params,
    )

    def learn(state, batch, key, timestep):
        state, metrics = learner.step(state, StreamBatch(batch), key)
        return state, _seen(metrics)

    return OnlineLearner(_from_first_params(learner, model), learn)


def _frozen(config, model):
    """MAML and ANIL, which do not train theta on the stream.

    They do not use `jaxsparse.frozen_maml`, because in checkpoints of ANIL phi has all layers, not
    only the head.
    """
    loss_fn = losses.cross_entropy(model)

    def init(key, batch, pretrained):
        return init_frozen_state(pretrained.params, inner_params)

    def learn(state, batch, key, timestep):
        state, metrics = frozen_maml_step(
            state,
            batch,
            loss_fn=loss_fn,
            step_sizes=restrict(inner_rates(config, state.params), state.fast_params),
            inner_steps=config.inner_steps,
        )
        return state, _seen(metrics)

    return OnlineLearner(init, learn)


_BASELINES = {
    "online-adam": _adam,
    "fine-tuning": _adam,
    "maml": _frozen,
    "anil": _frozen,
    "bgd": _bgd,
    "metacog": _bgd,
    "metabgd": _metabgd,
}


def _first_params(model, key):
    """The initial weights; C-MAML has the same ones with the same key."""
    return model.init(jax.random.split(key)[0])


def _from_first_params(learner: Learner, model: nn.Model) -> Callable:
    return lambda key, batch, pretrained: learner.init(_first_params(model, key), key)


def _skip_first_update(learner: Learner) -> Callable:
    """The learner's step, but nothing is learned at the first timestep."""

    def learn(state, batch, key, timestep):
        moved, metrics = learner.step(state, StreamBatch(batch), key)
        state = jax.tree.map(lambda new, old: jnp.where(timestep > 0, new, old), moved, state)
        return state, _seen(metrics)

    return learn


def _seen(metrics):
    return {"loss": metrics["loss"], "accuracy": metrics["accuracy"], "detected": jnp.array(False)}
