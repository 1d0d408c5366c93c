"""The pretraining as pure functions: few-shot learning on the first dataset."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse import losses, nn
from jaxsparse.data.switching import SwitchingData, scaled_images
from jaxsparse.draws import choose
from jaxsparse.gates import Gate
from jaxsparse.learners import maml
from jaxsparse.maml import MetaState, evaluate
from jaxsparse.precision import float32_by_default
from jaxsparse.training.errors import ConfigError
from jaxsparse.training.online.config import OnlineConfig
from jaxsparse.training.online.learners import Pretrained, inner_rates
from jaxsparse.training.program import (
    Program,
    add_metrics,
    first_of,
    keep_better,
    meta_step,
    repeated,
)

Metrics = dict[str, jax.Array]

QUERY_SHOTS = 15
# Numbers that are folded into the pretraining's key, one for each use of randomness; and the number
# that is folded into the seed's key to make it, different from those of `program`.
_INIT, _TRAIN, _VALIDATE = range(3)
_PRETRAIN = 3


class PretrainState(NamedTuple):
    """The state of the pretraining; checkpoints store it."""

    meta: MetaState
    best: Pretrained
    best_accuracy: jax.Array  # float32, -1 before the first validation
    best_epoch: jax.Array  # int32
    epoch: jax.Array  # int32, finished epochs
    validated: jax.Array  # int32, finished validation batches of the current epoch
    totals: Metrics  # sums over the current epoch
    first_nonfinite_step: jax.Array  # int32, first meta-step with a non-finite loss; -1: none


@dataclasses.dataclass(frozen=True)
class PretrainProgram(Program):
    """The pure functions of the pretraining; see `make_pretraining`."""

    validate: Callable[..., PretrainState]
    finish_epoch: Callable[[PretrainState], tuple[PretrainState, Metrics]]


def make_pretraining(config: OnlineConfig, data: SwitchingData) -> PretrainProgram:
    """The pretraining as pure functions; ConfigError if there are too few classes.

    - `init(key) -> state`
    - `train(state, key, data, steps) -> state`: takes `steps` meta-steps.
    - `validate(state, key, data, steps) -> state`: evaluates `steps` batches of held-out classes.
    - `finish_epoch(state) -> (state, row)`: keeps the best weights, starts the next epoch.

    Only the shapes of `data` and its numbers of classes and images are used.
    """
    training, held_out = pretraining_classes(config, data)
    shape = data.images.shape[1:]
    model = nn.conv4(config.ways, config.width, shape, blocks=config.blocks)
    loss_fn, adam = losses.cross_entropy(model), optax.adam(config.theta_lr)
    unmoved = optax.set_to_zero()  # the inner rates are not learned
    gate = Gate(
        lambda key, params: inner_rates(config, params),
        lambda rates, key: jax.tree.map(jax.lax.stop_gradient, rates),
    )
    learner = maml(
        loss_fn,
        gate,
        inner_steps=config.inner_steps,
        theta_optimizer=adam,
        mask_optimizer=unmoved,
        second_order=config.pretrain_second_order,
    )

    def episodes(key, data, classes):
        return sample_episodes(
            key, data, classes, config.pretrain_batch_size, config.ways, config.shots
        )

    def init(key):
        model_key, state_key = jax.random.split(jax.random.fold_in(key, _INIT))
        meta = learner.init(model.init(model_key), state_key)
        totals = {name: jnp.float32(0) for name in ("loss", "accuracy", "val_accuracy")}
        return PretrainState(
            meta,
            Pretrained(*jax.tree.map(jnp.copy, (meta.params, meta.theta_opt))),
            jnp.float32(-1.0),
            jnp.int32(0),
            jnp.int32(0),
            jnp.int32(0),
            totals,
            jnp.int32(-1),
        )

    def train_step(state, key, data):
        step_key = jax.random.fold_in(jax.random.fold_in(key, _TRAIN), state.meta.step)
        return meta_step(learner, state, episodes(step_key, data, training))

    def validation_batch(state, key, data):
        # The same episodes after every epoch.
        batch_key = jax.random.fold_in(jax.random.fold_in(key, _VALIDATE), state.validated)
        metrics = evaluate(
            state.meta.params,
            gate.apply(state.meta.mask, None),
            episodes(batch_key, data, held_out),
            loss_fn=loss_fn,
            inner_steps=config.inner_steps,
        )
        # With a non-finite loss the accuracy means nothing: it becomes NaN.
        finite = jnp.isfinite(metrics["loss"]).all()
        accuracy = jnp.where(finite, metrics["accuracy"].mean(), jnp.nan)
        totals = add_metrics(state.totals, {"val_accuracy": accuracy})
        return state._replace(totals=totals, validated=state.validated + 1)

    def finish_epoch(state):
        row = {name: total / config.pretrain_steps for name, total in state.totals.items()}
        epoch, accuracy = state.epoch + 1, row["val_accuracy"]
        candidate = Pretrained(state.meta.params, state.meta.theta_opt), accuracy, epoch
        best, best_accuracy, best_epoch = keep_better(
            *(accuracy, state.best_accuracy, candidate),
            (state.best, state.best_accuracy, state.best_epoch),
        )
        return state._replace(
            best=best,
            best_accuracy=best_accuracy,
            best_epoch=best_epoch,
            epoch=epoch,
            validated=jnp.int32(0),
            totals=jax.tree.map(jnp.zeros_like, state.totals),
        ), row

    return PretrainProgram(
        unit="meta-step",
        init=float32_by_default(init),
        train=float32_by_default(repeated(train_step)),
        position=lambda state: {
            "step": first_of(state.meta.step),
            "epoch": first_of(state.epoch),
        },
        learned=lambda state: state.meta.params,
        validate=float32_by_default(repeated(validation_batch)),
        finish_epoch=float32_by_default(finish_epoch),
    )


def pretraining_key(config: OnlineConfig) -> jax.Array:
    """The key of the pretraining; independent of the keys of streams with the same seed."""
    return jax.random.fold_in(jax.random.key(config.pretrain_seed), _PRETRAIN)


def pretraining_classes(
    config: OnlineConfig, data: SwitchingData
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Training and validation classes of the first dataset, each as (first, count).

    With Omniglot's 1,623 classes: the first 900 and the next 100. Other datasets are split in the
    same proportion.

    Raises:
      ConfigError: an episode needs more classes than there are, or a class has only one image.

    Examples:
      >>> pretraining_classes(OnlineConfig(), data)
      ((0, 900), (900, 100))
    """
    classes = data.num_classes[0]
    training = 900 * classes // 1623
    held_out = max(100 * classes // 1623, config.ways)
    if data.fewest_images[0] < 2:
        raise ConfigError(
            f"{config.method} is pretrained on episodes: a class needs 2 images,"
            f" {data.names[0]} has one with {data.fewest_images[0]}"
        )
    if training < config.ways or training + held_out > classes:
        raise ConfigError(
            f"ways must be lower with {config.method}: to pretrain on episodes of {config.ways}"
            f" classes the {classes} of {data.names[0]} are too few"
        )
    return (0, training), (training, held_out)


def sample_episodes(
    key: jax.Array,
    data: SwitchingData,
    classes: tuple[int, int],
    episodes: int,
    ways: int,
    shots: int,
) -> tuple[Any, Any]:
    """Sample E episodes from `classes`, given as (first, count); images with replacement.

    Support images are from the first half of a class, the `QUERY_SHOTS` query images per class from
    the second half.

    Returns:
      Support and query: images float32 [E, ways * n, h, w, c], labels int32 [E, ways * n].
    """
    class_key, support_key, query_key = jax.random.split(key, 3)
    number, (first, count) = jnp.arange(len(data.starts)), classes
    allowed = (number >= first) & (number < first + count)
    chosen = choose(class_key, jnp.broadcast_to(allowed, (episodes, len(number))), ways)
    starts, counts = (jnp.asarray(x)[chosen][..., None] for x in (data.starts, data.counts))
    half = counts // 2

    def rows(key, low, high, shots):
        where = starts + jax.random.randint(key, (episodes, ways, shots), low, high)
        images = scaled_images(data, where.reshape(episodes, -1), 0)
        labels = jnp.tile(jnp.repeat(jnp.arange(ways, dtype=jnp.int32), shots), (episodes, 1))
        return images, labels

    return rows(support_key, 0, half, shots), rows(query_key, half, counts, QUERY_SHOTS)
