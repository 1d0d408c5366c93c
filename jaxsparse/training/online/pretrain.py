"""Meta-learning before the stream: what fine-tuning, MAML and ANIL start from.

The result is kept in the package's cache folder, so that runs of the same settings share it.
"""

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
from jaxsparse.maml import MetaState, evaluate, init_state, sparse_maml_step
from jaxsparse.precision import float32_by_default
from jaxsparse.training.environment import unusual_settings
from jaxsparse.training.errors import ConfigError, RunError, Stopped
from jaxsparse.training.host import Hooks, Host, Progress
from jaxsparse.training.online.config import OnlineConfig
from jaxsparse.training.online.learners import Pretrained, inner_rates
from jaxsparse.training.run_folder import RunFolder
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
    bad_step: jax.Array  # int32, the first meta-step whose loss was not finite; -1: none


class PretrainProgram(NamedTuple):
    """The pure functions of the pretraining; see `make_pretraining`."""

    init: Callable[[jax.Array], PretrainState]
    train: Callable[[PretrainState, jax.Array, SwitchingData, Any], PretrainState]
    validate: Callable[[PretrainState, jax.Array, SwitchingData, Any], PretrainState]
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
        folder.write_result(pretraining.run())
    return pretraining.state.best


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
    - `train(state, key, data, steps) -> state`: `steps` more meta-steps; the count is traced.
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
    shape = data.images.shape[1:]
    model = nn.conv4(config.ways, config.width, shape, blocks=config.blocks)
    loss_fn, adam = losses.cross_entropy(model), optax.adam(config.theta_lr)
    unmoved = optax.set_to_zero()  # the inner rates are not learned
    gate = Gate(
        lambda key, params: inner_rates(config, params),
        lambda rates, key: jax.tree.map(jax.lax.stop_gradient, rates),
    )

    def episodes(key, data, classes):
        return sample_episodes(
            key, data, classes, config.pretrain_batch_size, config.ways, config.shots
        )

    def init(key):
        model_key, state_key = jax.random.split(jax.random.fold_in(key, _INIT))
        meta = init_state(model.init(model_key), gate, adam, unmoved, state_key)
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
        meta, metrics = sparse_maml_step(
            state.meta,
            tasks,
            loss_fn=loss_fn,
            gate=gate,
            inner_steps=config.inner_steps,
            theta_optimizer=adam,
            mask_optimizer=unmoved,
            second_order=config.pretrain_second_order,
        )
        first_bad = ~jnp.isfinite(metrics["loss"]) & (state.bad_step < 0)
        return state._replace(
            meta=meta,
            totals=_added(state.totals, loss=metrics["loss"], accuracy=metrics["accuracy"]),
            bad_step=jnp.where(first_bad, step, state.bad_step),
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
        totals = _added(state.totals, val_accuracy=accuracy)
        return state._replace(totals=totals, validated=state.validated + 1)

    def repeated(step):
        return lambda state, key, data, steps: jax.lax.fori_loop(
            0, steps, lambda _, s: step(s, key, data), state
        )

    def finish_epoch(state):
        row = {name: total / config.pretrain_steps for name, total in state.totals.items()}
        epoch, accuracy = state.epoch + 1, row["val_accuracy"]
        candidate = Pretrained(state.meta.params, state.meta.theta_opt), accuracy, epoch
        kept = state.best, state.best_accuracy, state.best_epoch
        best, best_accuracy, best_epoch = jax.tree.map(
            lambda new, old: jnp.where(accuracy > state.best_accuracy, new, old), candidate, kept
        )
        return PretrainState(
            state.meta,
            best,
            best_accuracy,
            best_epoch,
            epoch,
            jnp.int32(0),
            jax.tree.map(jnp.zeros_like, state.totals),
            state.bad_step,
        ), row

    functions = (init, repeated(meta_step), repeated(validation_batch), finish_epoch)
    return PretrainProgram(*(float32_by_default(function) for function in functions))


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


class _Pretraining(Host):
    """The pretraining on the host, in a folder of its own."""

    unit = "meta-step"

    def __init__(self, config, data, folder, hooks):
        super().__init__(folder, hooks)
        self.config, self.key = config, pretraining_key(config)
        self.first_seed = config.pretrain_seed
        self.data = jax.device_put(data)
        program = make_pretraining(config, data)
        self.train = jax.jit(program.train, donate_argnums=0)
        self.validate = jax.jit(program.validate, donate_argnums=0)
        self.finish_epoch = jax.jit(program.finish_epoch)
        init = jax.jit(program.init)
        restored = self.restore(jax.eval_shape(init, self.key))
        self.state = init(self.key) if restored is None else restored
        folder.keep_rows(self.epoch)

    @property
    def epoch(self) -> int:
        return int(self.state.epoch)

    @property
    def step(self) -> int:
        return int(self.state.meta.step)

    def position(self):
        return {"step": self.step, "epoch": self.epoch}

    def learned(self, state):
        return jax.tree.map(lambda x: np.asarray(x)[None], state.meta.params)

    def over(self):
        stale = self.epoch - int(self.state.best_epoch)
        return self.epoch >= self.config.pretrain_epochs or stale > self.config.pretrain_patience

    def run(self):
        if not self.folder.rows():
            self.folder.add_row({"epoch": 0, "step": 0})
        while not self.over():
            while left := (self.epoch + 1) * self.config.pretrain_steps - self.step:
                self.advance("step", self.train, left)
            while left := self.config.pretrain_steps - int(self.state.validated):
                self.advance("batch", self.validate, left)
            self.state, row = self.finish_epoch(self.state)
            row = {name: float(value) for name, value in row.items()}
            row = {"epoch": self.epoch, "step": self.step, **row}
            self.folder.add_row(row)
            self.save()
            self.hooks.row(row)
        return {
            "epoch": int(self.state.best_epoch),
            "val_accuracy": float(self.state.best_accuracy),
        }

    def advance(self, unit, function, left):
        """Take some of the steps that are left; a batch of the validation costs less than one."""
        self.tell()
        steps = self.segment(left)
        self.timed(unit, steps, self.call, function, steps)
        self.check_finite(np.asarray(self.state.bad_step)[None])
        validated = np.asarray(self.state.totals["val_accuracy"])[None]
        self.check_all_finite("an output on the held-out classes", validated)
        self.save_if_due()

    def call(self, function, steps):
        self.state = function(self.state, self.key, self.data, jnp.int32(steps))
        jax.block_until_ready(self.state)

    def tell(self):
        in_epoch = self.step - self.epoch * self.config.pretrain_steps
        batches = in_epoch + int(self.state.validated)
        done = batches / (2 * self.config.pretrain_steps)
        means = {"accuracy": float(self.state.totals["accuracy"]) / in_epoch} if in_epoch else {}
        self.hooks.progress(Progress("pretraining", 0, self.step, done, None, means))


def _added(totals, **values):
    return totals | {name: totals[name] + value for name, value in values.items()}


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
        # Weights are shared by runs that leave it to the machine what computes them.
        **({} if config.blocks == "auto" else {"blocks": config.blocks}),
        **unusual_settings(),
    }
