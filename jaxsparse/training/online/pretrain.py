"""Meta-learning before the stream: what fine-tuning, MAML and ANIL start from.

The result is kept in the package's cache folder, so that runs of the same settings share it.
"""

import dataclasses
import hashlib
import json
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse import losses, nn
from jaxsparse.data.switching import SwitchingData
from jaxsparse.draws import choose
from jaxsparse.gates import Gate
from jaxsparse.learners import maml
from jaxsparse.maml import MetaState, evaluate
from jaxsparse.precision import float32_by_default
from jaxsparse.training.environment import unusual_settings
from jaxsparse.training.errors import ConfigError, RunError, Stopped
from jaxsparse.training.online.config import OnlineConfig
from jaxsparse.training.online.learners import Pretrained, inner_rates
from jaxsparse.training.program import (
    Program,
    add_metrics,
    first_nonfinite,
    keep_better,
    repeated,
)
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.runner import Hooks, Progress, Runner
from jaxsparse.training.seeds import SingleRun
from jaxsparse.user_cache import cache_dir

Tree = Any
Metrics = dict[str, jax.Array]

QUERY_SHOTS = 15
_WAIT_SECONDS = 0.2  # between two looks at whether another run's pretraining is over
_VERSION = 2  # raise it whenever the same settings would give other weights
# Streams of randomness that follow from the key, and its own number beside the streams of a run of
# the same seed.
_INIT, _TRAIN, _VALIDATE = range(3)
_PRETRAIN = 3


class PretrainState(NamedTuple):
    """Everything the pretraining changes: what a checkpoint holds."""

    meta: MetaState
    best: Pretrained
    best_accuracy: jax.Array  # float32, -1 before the first validation
    best_epoch: jax.Array  # int32
    epoch: jax.Array  # int32, epochs finished
    validated: jax.Array  # int32, batches of the present epoch's validation
    totals: Metrics  # sums over the present epoch
    first_nonfinite_step: jax.Array  # int32, of the meta-steps' losses; -1: none


@dataclasses.dataclass(frozen=True)
class PretrainProgram(Program):
    """The pure functions of the pretraining; see `make_pretraining`."""

    validate: Callable[..., PretrainState]
    finish_epoch: Callable[[PretrainState], tuple[PretrainState, Metrics]]


def pretrain(config: OnlineConfig, data: SwitchingData, hooks: Hooks) -> Pretrained:
    """Meta-learn on the first data set's classes, or read what was meta-learned before.

    MAML (ANIL's inner loop for anil) with Adam, until the accuracy on held-out classes has not
    risen for `pretrain_patience` epochs; the weights of the best epoch are kept. What was stopped
    goes on where it was. Where another run is at it, this one waits, and takes over from it if it
    ends before its time.

    Args:
      config: the run's configuration.
      data: the images.
      hooks: see `Hooks`.

    Returns:
      The weights and Adam's moments.

    Raises:
      ConfigError: too few classes.
      Stopped, Diverged, RunError: as in `run_online`.

    Example:
      >>> start = pretrain(OnlineConfig(method="maml"), data, Hooks())

    Source: Caccia et al. 2020, OSAKA, its public code.
    """
    record = _record(config, data)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    folder = RunFolder(cache_dir() / "pretrained" / digest)
    with folder.lock(wait=_waiting(hooks)):
        folder.begin(record)
        try:
            pretraining = _Pretraining(config, data, folder, hooks)
        except RunError as error:
            raise RunError(f"{error}; to pretrain anew, delete {folder.path}") from error
        folder.write_result(pretraining.to_the_end())
    return pretraining.runner.state.best


def pretrained_like(config: OnlineConfig, data: SwitchingData) -> Pretrained:
    """The shapes and dtypes of what `pretrain` gives.

    Args:
      config: the run's configuration.
      data: the images; only their shapes and numbers count.

    Returns:
      A `Pretrained` of `jax.ShapeDtypeStruct`.

    Raises:
      ConfigError: too few classes.

    Example:
      >>> template = pretrained_like(OnlineConfig(method="maml"), data)
    """
    init = make_pretraining(config, data).init
    return jax.eval_shape(init, jax.random.key(config.pretrain_seed)).best


def make_pretraining(config: OnlineConfig, data: SwitchingData) -> PretrainProgram:
    """The pure functions that pretraining is made of.

    - `init(key) -> state`
    - `train(state, key, data, steps) -> state`: `steps` more meta-steps.
    - `validate(state, key, data, steps) -> state`: `steps` more batches on held-out classes.
    - `finish_epoch(state) -> (state, row)`: keep the best weights, start the next epoch.

    Args:
      config: the run's configuration.
      data: the images; only their shapes and numbers count.

    Returns:
      A `PretrainProgram`.

    Raises:
      ConfigError: too few classes.

    Example:
      >>> program = make_pretraining(OnlineConfig(method="maml"), data)
    """
    training, held_out = pretraining_classes(config, data)
    model = nn.conv4(config.ways, config.width, data.images.shape[1:])
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

    def meta_step(state, key, data):
        step = state.meta.step
        tasks = episodes(jax.random.fold_in(jax.random.fold_in(key, _TRAIN), step), data, training)
        meta, metrics = learner.step(state.meta, tasks, None)
        return state._replace(
            meta=meta,
            totals=add_metrics(state.totals, metrics),
            first_nonfinite_step=first_nonfinite(state.first_nonfinite_step, step, metrics["loss"]),
        )

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
        # A loss that is not finite makes the accuracy NaN: it says nothing then.
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
        train=float32_by_default(repeated(meta_step)),
        position=lambda state: {"step": state.meta.step, "epoch": state.epoch},
        learned=lambda state: state.meta.params,
        validate=float32_by_default(repeated(validation_batch)),
        finish_epoch=float32_by_default(finish_epoch),
    )


def pretraining_key(config: OnlineConfig) -> jax.Array:
    """Where all randomness of the pretraining comes from, none of it shared with a stream's.

    Args:
      config: the run's configuration.

    Example:
      >>> state = make_pretraining(config, data).init(pretraining_key(config))
    """
    return jax.random.fold_in(jax.random.key(config.pretrain_seed), _PRETRAIN)


def pretraining_classes(
    config: OnlineConfig, data: SwitchingData
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Classes of the first data set to meta-learn and to validate on, each (first, count).

    Of Omniglot's 1,623 classes the first 900 and the next 100; of others a like share.

    Args:
      config: the run's configuration.
      data: the images.

    Raises:
      ConfigError: fewer classes, or images of one, than an episode wants.

    Example:
      >>> pretraining_classes(OnlineConfig(), data)
      ((0, 900), (900, 100))
    """
    classes = data.num_classes[0]
    training = 900 * classes // 1623
    held_out = max(100 * classes // 1623, config.ways)
    if training < config.ways or training + held_out > classes or data.fewest_images[0] < 2:
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
    """Draw episodes of the first data set, images with replacement.

    A class's support images are of its first half, its query images of the second.

    Args:
      key: a jax.random key.
      data: the images.
      classes: (first, count) of those to draw from.
      episodes: E.
      ways: classes per episode.
      shots: support images per class; `QUERY_SHOTS` query images.

    Returns:
      Support and query: images float32 [E, ways * n, h, w, c], labels int32 [E, ways * n].

    Example:
      >>> support, query = sample_episodes(jax.random.key(0), data, (0, 900), 8, 10, 5)
    """
    class_key, support_key, query_key = jax.random.split(key, 3)
    number, (first, count) = jnp.arange(len(data.starts)), classes
    allowed = (number >= first) & (number < first + count)
    chosen = choose(class_key, jnp.broadcast_to(allowed, (episodes, len(number))), ways)
    starts, counts = (jnp.asarray(x)[chosen][..., None] for x in (data.starts, data.counts))
    half = counts // 2

    def rows(key, low, high, shots):
        where = starts + jax.random.randint(key, (episodes, ways, shots), low, high)
        pixels = jnp.asarray(data.images)[where.reshape(episodes, -1)].astype(jnp.float32)
        labels = jnp.tile(jnp.repeat(jnp.arange(ways, dtype=jnp.int32), shots), (episodes, 1))
        return pixels * jnp.asarray(data.scale)[0] + jnp.asarray(data.shift)[0], labels

    return rows(support_key, 0, half, shots), rows(query_key, half, counts, QUERY_SHOTS)


def _waiting(hooks: Hooks) -> Callable[[], None]:
    """What to do while another run meta-learns the same: say so once, and stop if asked to."""
    told: list[str] = []

    def wait():
        if not told:
            told.append("another run is pretraining what this one starts from; waiting for it")
            hooks.warn(told[0])
        if hooks.should_stop():
            raise Stopped("stopped while waiting for another run's pretraining")
        time.sleep(_WAIT_SECONDS)

    return wait


class _Pretraining:
    """The pretraining on the host, in a folder of its own."""

    def __init__(self, config, data, folder, hooks):
        self.config, self.folder, self.hooks = config, folder, hooks
        program, one = make_pretraining(config, data), SingleRun(1, None)
        key, data = pretraining_key(config), one.share(data)
        self.runner = Runner(program, folder, hooks, one, (key,), data, config.pretrain_seed)
        self.finish_epoch = one.over_runs(program.finish_epoch, (0,))

        def validate(state, own, data, first, last):
            return program.validate(state, *own, data, last - first)

        self.validate = one.over_steps(validate)
        init = one.over_runs(program.init, (0,))
        if not self.runner.restore(init, key):
            self.runner.state = init(key)
        folder.keep_rows(self.epoch)

    @property
    def epoch(self) -> int:
        return int(self.runner.state.epoch)

    def over(self):
        stale = self.epoch - int(self.runner.state.best_epoch)
        return self.epoch >= self.config.pretrain_epochs or stale > self.config.pretrain_patience

    def to_the_end(self):
        runner = self.runner
        if not self.folder.rows():
            self.folder.add_row({"epoch": 0, "step": 0})
        while not self.over():
            runner.train((self.epoch + 1) * self.config.pretrain_steps, self.tell)
            self.validate_epoch()
            runner.state, row = self.finish_epoch(runner.state)
            row = {name: float(value) for name, value in row.items()}
            runner.add_row({"epoch": self.epoch, "step": runner.step, **row})
        state = runner.state
        return {"epoch": int(state.best_epoch), "val_accuracy": float(state.best_accuracy)}

    def validate_epoch(self):
        def left():
            return self.config.pretrain_steps - int(self.runner.state.validated)

        def take(batches):
            self.runner.take(self.validate, self.runner.data, 0, batches)
            totals = self.runner.to_host(self.runner.state.totals)
            self.runner.check_all_finite(
                "an output on the held-out classes", totals["val_accuracy"]
            )

        self.runner.advance("batch", left, take, self.tell)

    def tell(self):
        step, steps = self.runner.step, self.config.pretrain_steps
        in_epoch = step - self.epoch * steps
        done = (in_epoch + int(self.runner.state.validated)) / (2 * steps)
        means = {n: x for n, x in self.runner.means(in_epoch).items() if n == "accuracy"}
        self.hooks.progress(Progress("pretraining", 0, step, done, None, means))


def _record(config, data):
    """All that the meta-learned weights depend on."""
    rows = int(np.asarray(data.counts)[np.asarray(data.datasets) == 0].sum())
    images = zlib.crc32(np.ascontiguousarray(np.asarray(data.images)[:rows]).data)
    names = ("ways", "shots", "width", "inner_steps", "inner_lr", "theta_lr")
    names += tuple(name for name in vars(config) if name.startswith("pretrain_"))
    settings = {name: getattr(config, name) for name in names}
    return {
        "version": _VERSION,
        "inner_loop": "head" if config.method == "anil" else "all but the norms",
        "images": [data.names[0], data.num_classes[0], images],
        **settings,
        **unusual_settings(),
    }
