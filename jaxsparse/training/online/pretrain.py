"""Pretraining: meta-learning before the stream, for fine-tuning, MAML and ANIL.

The pretrained network is stored in the cache folder. Runs with the same settings share it.
"""

import hashlib
import json
import time
import zlib
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from jaxsparse.data.switching import SwitchingData
from jaxsparse.training import processes
from jaxsparse.training.environment import unusual_settings
from jaxsparse.training.errors import RunError, Stopped
from jaxsparse.training.online.config import OnlineConfig
from jaxsparse.training.online.learners import Pretrained
from jaxsparse.training.online.pretrain_program import make_pretraining, pretraining_key
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.runner import Hooks, Progress, Runner
from jaxsparse.training.seeds import SingleRun
from jaxsparse.training.shared_folder import held
from jaxsparse.user_cache import cache_dir

_WAIT_SECONDS = 0.2  # between two checks whether another run has finished the pretraining
_VERSION = 2  # increase it whenever the same settings would give other weights


def pretrain(config: OnlineConfig, data: SwitchingData, hooks: Hooks) -> Pretrained:
    """Meta-learn on classes of the first dataset, or load the network from the cache.

    MAML (for anil with ANIL's inner loop) with Adam. It stops when the accuracy on held-out classes
    has not improved for more than `pretrain_patience` epochs, and keeps the weights of the best
    epoch. An interrupted pretraining is resumed. If another run is doing the same pretraining, this
    one waits for it, and takes over if the other one stops early.

    Args:
      config: the run's configuration.
      data: the images.
      hooks: see `Hooks`.

    Returns:
      The weights and the state of Adam.

    Raises:
      ConfigError: too few classes.
      Stopped, Diverged, RunError: as in `run_online`.

    Source: Caccia et al. 2020, OSAKA, its public code.
    """
    record = _record(config, data)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    folder = RunFolder(cache_dir() / "pretrained" / digest)
    with held(folder, _waiting(hooks)) as folder:
        folder.begin(record)
        try:
            pretraining = _Pretraining(config, data, folder, hooks)
        except RunError as error:
            raise RunError(f"{error}; to pretrain again, delete {folder.path}") from error
        folder.write_result(pretraining.to_the_end())
    return pretraining.runner.state.best


def pretrained_like(config: OnlineConfig, data: SwitchingData) -> Pretrained:
    """The result of `pretrain` with a `jax.ShapeDtypeStruct` for each array."""
    init = make_pretraining(config, data).init
    return jax.eval_shape(init, jax.random.key(config.pretrain_seed)).best


def _waiting(hooks: Hooks) -> Callable[[], None]:
    """The `wait` of the lock: warn once, sleep, and stop if asked to."""
    told: list[str] = []

    def wait():
        if not told:
            told.append("another run is pretraining the network that this run needs; waiting")
            hooks.warn(told[0])
        if hooks.should_stop():
            raise Stopped("stopped while waiting for another run's pretraining")
        time.sleep(_WAIT_SECONDS)

    return wait


class _Pretraining:
    """The pretraining on the host, with its own run folder."""

    def __init__(self, config, data, folder, hooks):
        self.config, self.folder, self.hooks = config, folder, hooks
        program, one = make_pretraining(config, data), SingleRun(1, None, _replicas())
        key, data = one.share((pretraining_key(config), data))
        self.runner = Runner(program, folder, hooks, one, (key,), data, config.pretrain_seed)
        self.finish_epoch = one.over_runs(program.finish_epoch, (0,))

        def validate(state, own, data, first, last):
            return program.validate(state, *own, data, last - first)

        self.validate = one.over_steps(validate)
        init = one.over_runs(program.init, (0,))
        restored = self.runner.restore(init, key)
        if not restored:
            self.runner.state = init(key)
        folder.keep_rows(self.epoch if restored else -1)

    @property
    def epoch(self) -> int:
        return int(self.runner.state.epoch)

    def over(self):
        stale = self.epoch - int(self.runner.state.best_epoch)
        over = self.epoch >= self.config.pretrain_epochs or stale > self.config.pretrain_patience
        return bool(processes.number_from_first(over))

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
        def take(first, last):
            self.runner.take(self.validate, self.runner.data, first, last)
            totals = self.runner.to_host(self.runner.state.totals)
            self.runner.check_all_finite(
                "an output on the held-out classes", totals["val_accuracy"]
            )

        done, end = int(self.runner.state.validated), self.config.pretrain_steps
        self.runner.advance("batch", done, end, take, self.tell)

    def tell(self):
        step, steps = self.runner.step, self.config.pretrain_steps
        in_epoch = step - self.epoch * steps
        done = (in_epoch + int(self.runner.state.validated)) / (2 * steps)
        means = {n: x for n, x in self.runner.means(in_epoch).items() if n == "accuracy"}
        self.hooks.progress(Progress("pretraining", 0, step, done, None, means))


def _replicas() -> Mesh | None:
    """One device of each process, all of which compute the same; None with a single process."""
    if jax.process_count() == 1:
        return None
    count = jax.process_count()
    devices = processes.devices("the pretraining", lambda number: number == count)
    return Mesh(np.array(devices), ("processes",))


def _record(config, data):
    """All settings that the pretrained weights depend on."""
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
        # Runs with "auto" share weights, whichever blocks were used.
        **({} if config.blocks == "auto" else {"blocks": config.blocks}),
        **unusual_settings(),
    }
