"""A run on a switching stream on the host: one interval after the other."""

from typing import Any

import jax
import numpy as np

from jaxsparse.data.switching import SwitchingData
from jaxsparse.training.online.config import CMAML_METHODS, PRETRAINED_METHODS, OnlineConfig
from jaxsparse.training.online.pretrain import pretrain, pretrained_like
from jaxsparse.training.online.program import Trace, make_program
from jaxsparse.training.online.result import accuracies, detections, make_result
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.runner import Hooks, Progress, Runner, plain
from jaxsparse.training.seeds import place_runs, seed_keys
from jaxsparse.training.shared_folder import held


def run_online(
    config: OnlineConfig, data: SwitchingData, folder: RunFolder, hooks: Hooks
) -> dict[str, Any]:
    """Learn the stream, starting from the newest checkpoint if there is one; write the result.

    Args:
      config: the run's configuration.
      data: the images.
      folder: the run's folder, with unit "interval".
      hooks: see `Hooks`.

    Returns:
      The result, see `make_result`.

    Raises:
      Stopped: asked to stop; the state is saved.
      Diverged: a loss or a parameter is not finite; the last good checkpoint is kept.
      RunError: the folder cannot be read or written.

    Examples:
      >>> result = run_online(config, data, RunFolder.create(path, {}, "interval"), Hooks())
    """
    with held(folder) as folder:
        trace = _OnlineRun(config, data, folder, hooks).to_the_end()
        result = make_result(config, data.names, folder.rows(), trace)
        folder.write_result(result)
    return result


class _OnlineRun:
    """The state of a run on the host; its arrays have a leading axis of seeds."""

    def __init__(self, config, data, folder, hooks):
        self.config, self.names, self.folder, self.hooks = config, data.names, folder, hooks
        placement, program = place_runs(config.seeds), make_program(config, data)
        self.sparsity = placement.over_runs(program.sparsity, (0,))
        keys = seed_keys(config)
        self.runner = Runner(
            program, folder, hooks, placement, (keys,), placement.share(data), config.seed
        )
        self._start(placement.over_runs(program.init, (0, None)), data)
        folder.keep_rows(self.first_interval if self.runner.step else -1)

    def _start(self, init, data):
        pretrains, runner = self.config.method in PRETRAINED_METHODS, self.runner
        like = pretrained_like(self.config, data) if pretrains else ()
        if not runner.restore(init, *runner.own, like):
            # A resumed run has the weights in its checkpoints.
            pretrained = pretrain(self.config, data, self.hooks) if pretrains else ()
            runner.state = init(*runner.own, runner.placement.share(pretrained))

    @property
    def first_interval(self) -> int:
        """Finished intervals, without one that has just ended: its row may be missing."""
        return max(self.runner.step - 1, 0) // self.config.log_every

    # ---- the run

    def to_the_end(self):
        runner = self.runner
        if not runner.step:
            self.log(0)
        for interval in range(self.first_interval + 1, self.config.intervals + 1):
            runner.lap()
            runner.train(self.end(interval), self.tell)
            self.log(interval)
            self.folder.log_timing(interval=interval, seconds=runner.lap())
        runner.save()
        return self.trace()

    def end(self, interval):
        return min(interval * self.config.log_every, self.config.timesteps)

    def log(self, interval):
        """Write the row of a finished interval."""
        row: dict[str, Any] = {"interval": interval, "step": self.runner.step}
        if interval:
            row |= self.measures(self.end(interval - 1))
        row["sparsity"] = plain(self.runner.to_host(self.sparsity(self.runner.state)))
        self.runner.add_row(row, save=False)

    def measures(self, begin):
        """The metrics of all timesteps so far, and of the timesteps since `begin`."""
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
        trace = self.runner.to_host(self.runner.state.trace)
        return jax.tree.map(lambda x: x[:, : self.runner.step], trace)

    # ---- progress

    def tell(self):
        runner, timesteps = self.runner, self.config.timesteps
        step = runner.step
        metrics = {"accuracy": float(self.trace().score.mean())} if step else {}
        pace = runner.seconds_per.get("step")
        left = None if pace is None else (timesteps - step) * pace
        stage, interval = "compile" if pace is None else "train", step // self.config.log_every
        self.hooks.progress(Progress(stage, interval, step, step / timesteps, left, metrics))


def _known(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the seeds' metrics as arrays [seeds]; leave out those that are NaN for any seed."""
    whole: dict[str, Any] = {}
    for name, first in measured[0].items():
        values = [seed[name] for seed in measured]
        if isinstance(first, dict):
            whole[name] = _known(values)
        elif not np.isnan(values).any():
            whole[name] = np.array(values)
    return whole
