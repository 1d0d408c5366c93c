"""The host's side of a run on a switching stream: drive, report, save, go on, stop."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.data.switching import SwitchingData
from jaxsparse.training.host import Hooks, Progress, RunsHost, learned, plain
from jaxsparse.training.online.config import CMAML_METHODS, PRETRAINED_METHODS, OnlineConfig
from jaxsparse.training.online.pretrain import pretrain, pretrained_like
from jaxsparse.training.online.program import Trace, make_program
from jaxsparse.training.online.result import accuracies, detections, make_result
from jaxsparse.training.run_folder import RunFolder


def run_online(
    config: OnlineConfig, data: SwitchingData, folder: RunFolder, hooks: Hooks
) -> dict[str, Any]:
    """Learn the stream from wherever the folder's checkpoints are, and write the result.

    Args:
      config: the run's configuration.
      data: the images.
      folder: the run's folder, its unit "interval".
      hooks: see `Hooks`.

    Returns:
      The result: see `make_result`.

    Raises:
      Stopped: asked to stop; the state is saved.
      Diverged: the loss is not finite; the last good checkpoint is kept.
      RunError: the folder cannot be read or written.

    Example:
      >>> result = run_online(config, data, RunFolder.create(path, {}, "interval"), Hooks())
    """
    with folder.lock():
        trace = _OnlineRun(config, data, folder, hooks).run()
        result = make_result(config, data.names, folder.rows(), trace)
        folder.write_result(result)
    return result


class _OnlineRun(RunsHost):
    """The state of a run on the host; its arrays lead with the axis of seeds."""

    unit = "timestep"

    def __init__(self, config, data, folder, hooks):
        super().__init__(folder, hooks, config.seeds)
        self.config, self.names = config, data.names
        self.first_seed = config.seed
        placement, program = self.placement, make_program(config, data)

        def train(state, key, data, first, last):
            return program.train(state, key, data, last - first)

        keys = jnp.stack([jax.random.key(config.seed + i) for i in range(config.seeds)])
        self.by_turn = [placement.put(keys, turn) for turn in range(placement.turns)]
        self.data = placement.share(data)
        self.train = placement.over_steps(train)
        self.sparsity = placement.over_runs(program.sparsity, (0,))
        init = placement.over_runs(program.init, (0, None))
        pretrains = config.method in PRETRAINED_METHODS
        like = pretrained_like(config, data) if pretrains else ()
        restored = self.restored(init, self.by_turn[0], like)
        if restored is None:  # later the weights are in the run's own checkpoints
            pretrained = pretrain(config, data, hooks) if pretrains else ()
            restored = init(self.by_turn[0], placement.share(pretrained))
        self.state = restored
        folder.keep_rows(self.first_interval if self.step else -1)

    def learned(self, state):
        return learned(state.learner)

    @property
    def step(self) -> int:
        return int(self.state.step[0])

    @property
    def interval(self) -> int:
        """Whole intervals that are over."""
        return self.step // self.config.log_every

    @property
    def first_interval(self) -> int:
        """The interval to go on with: at the end of one that one, whose row may be missing."""
        return max(self.step - 1, 0) // self.config.log_every

    def position(self):
        return {"step": self.step, "interval": self.interval}

    # ---- the run

    def run(self):
        if not self.step:
            self.log(0)
        for interval in range(self.first_interval, self.config.intervals):
            begun = time.monotonic()
            self.train_interval(interval)
            self.log(interval + 1)
            seconds = round(time.monotonic() - begun, 3)
            self.folder.log_timing(interval=interval + 1, seconds=seconds)
        self.save()
        return self.trace()

    def train_interval(self, interval):
        end = self.end(interval + 1)
        while self.step < end:
            self.tell()
            steps = self.segment(end - self.step)
            self.timed("step", steps, self.train_segment, steps)
            self.check_finite(self.placement.kept(self.state.bad_step))
            self.save_if_due()

    def train_segment(self, steps):
        self.state = self.train(self.state, self.by_turn, self.data, 0, steps)
        jax.block_until_ready(self.state)

    def end(self, interval):
        return min(interval * self.config.log_every, self.config.timesteps)

    def log(self, interval):
        """Write the row of an interval that is over."""
        row: dict[str, Any] = {"interval": interval, "step": self.step}
        if interval:
            row |= self.measures(self.end(interval - 1))
        row["sparsity"] = plain(self.placement.kept(self.sparsity(self.state)))
        self.folder.add_row(row)
        self.hooks.row(row)

    def measures(self, begin):
        """The metrics of all timesteps so far, and of those from `begin` on."""
        trace = self.trace()
        by_seed = [jax.tree.map(lambda x, i=i: x[i], trace) for i in range(self.config.seeds)]
        measured = [accuracies(own, self.names) for own in by_seed]
        if self.config.method in CMAML_METHODS:
            measured = [m | detections(own) for m, own in zip(measured, by_seed, strict=True)]
        whole = _known(measured)
        for name, column in (("accuracy", trace.score), ("loss", trace.loss)):
            whole[f"interval_{name}"] = column[:, begin:].mean(1, dtype=np.float64)
        return plain(whole)

    def trace(self) -> Trace:
        """The timesteps so far, [seeds, t]."""
        return jax.tree.map(lambda x: x[:, : self.step], self.placement.kept(self.state.trace))

    # ---- telling

    def tell(self):
        config, step = self.config, self.step
        score = self.trace().score
        metrics = {"accuracy": float(score.mean())} if step else {}
        pace = self.seconds_per.get("step")
        left = None if pace is None else (config.timesteps - step) * pace
        stage = "compile" if pace is None else "train"
        done = step / config.timesteps
        self.hooks.progress(Progress(stage, self.interval, step, done, left, metrics))


def _known(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """One dict of all seeds' metrics, [seeds]; without those that some seed does not have yet."""
    whole: dict[str, Any] = {}
    for name, first in measured[0].items():
        values = [seed[name] for seed in measured]
        if isinstance(first, dict):
            whole[name] = _known(values)
        elif not np.isnan(values).any():
            whole[name] = np.array(values)
    return whole
