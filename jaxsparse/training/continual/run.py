"""A continual-learning run on the host: train on each task, then measure."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.data import TaskStream
from jaxsparse.training.continual.config import ContinualConfig
from jaxsparse.training.continual.learners import Rates, default_rates
from jaxsparse.training.continual.program import make_program, measured_tasks
from jaxsparse.training.continual.result import SUMMARIES, make_result, summaries
from jaxsparse.training.errors import ConfigError
from jaxsparse.training.program import first_of
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.runner import Hooks, Progress, Runner, plain
from jaxsparse.training.seeds import place_runs
from jaxsparse.training.shared_folder import held
from jaxsparse.training.statistics import over_seeds


def run_stream(
    config: ContinualConfig, stream: TaskStream, folder: RunFolder, hooks: Hooks
) -> dict[str, Any]:
    """Learn the stream, starting from the newest checkpoint if there is one; write the result.

    Args:
      config: the run's configuration.
      stream: the tasks.
      folder: the run's folder, with unit "task".
      hooks: see `Hooks`.

    Returns:
      The result, see `make_result`.

    Raises:
      Stopped: asked to stop; the state is saved.
      Diverged: a loss or a parameter is not finite; the last good checkpoint is kept.
      RunError: the folder cannot be read or written.

    Examples:
      >>> result = run_stream(config, stream, RunFolder.create(path, {}, "task"), Hooks())
    """
    runs = [Run(seed, default_rates(config)) for seed in _seeds(config)]
    with held(folder) as folder:
        accuracy = _StreamRun(config, runs, stream, folder, hooks).to_the_end()
        result = make_result(config, folder.rows(), accuracy)
        folder.write_result(result)
    return result


def scan_stream(
    config: ContinualConfig,
    grid: list[Rates],
    stream: TaskStream,
    folder: RunFolder,
    hooks: Hooks,
) -> dict[str, Any]:
    """Learn the stream with every point of a grid of rates, in one program.

    Args:
      config: the configuration; the grid replaces its rates, and `validation` must be set.
      grid: the points.
      stream: the tasks; their test images must be held-out training images.
      folder: as in `run_stream`.
      hooks: as in `run_stream`.

    Returns:
      {"points": for each point its rates, and the mean and std of RA, BTI and LA over the seeds}.

    Raises:
      ConfigError: `config.validation` is not set.
      Stopped, Diverged, RunError: as in `run_stream`.

    Examples:
      >>> grid = [Rates(alpha, 1.7, 0.1) for alpha in (0.05, 0.1, 0.15)]
      >>> result = scan_stream(config, grid, stream, folder, Hooks())
    """
    if not config.validation:
        raise ConfigError("validation must be set in a scan, which may not use the test images")
    runs = [Run(seed, rates) for rates in grid for seed in _seeds(config)]
    with held(folder) as folder:
        accuracy = _StreamRun(config, runs, stream, folder, hooks, may_diverge=True).to_the_end()
        # A diverged network has accuracy 0.
        by_point = np.nan_to_num(accuracy).reshape(len(grid), config.seeds, *accuracy.shape[1:])
        result = {"points": [_point(*pair) for pair in zip(grid, by_point, strict=True)]}
        folder.write_result(result)
    return result


def _point(rates, accuracy):
    by_seed = [summaries(one) for one in accuracy.astype(np.float64)]
    means = over_seeds([{name: seed[name] for name in SUMMARIES} for seed in by_seed])
    return {**rates._asdict(), **means}


def _seeds(config):
    return range(config.seed, config.seed + config.seeds)


class Run(NamedTuple):
    """The per-run arguments of a program."""

    seed: int
    rates: Rates


class _StreamRun:
    """The state of a run on the host; its arrays have a leading axis of runs."""

    def __init__(self, config, runs, stream, folder, hooks, may_diverge=False):
        self.config, self.tasks, self.folder, self.hooks = config, stream.num_tasks, folder, hooks
        self.program, placement = make_program(config, stream), place_runs(len(runs))
        self._compile(placement)
        self.stream = placement.share(stream)
        keys = jnp.stack([jax.random.key(run.seed) for run in runs])
        rates = Rates(*jnp.array([run.rates for run in runs], jnp.float32).T)
        schedule = placement.over_runs(self.program.schedule, (0, None))
        schedule = placement.to_host(schedule(placement.put(keys), self.stream))
        self.runner = Runner(
            *(self.program, folder, hooks, placement, (schedule, keys, rates), self.stream),
            first_seed=config.seed,
            may_diverge=may_diverge,
        )
        _, keys, self.rates = self.runner.own
        init = placement.over_runs(self.program.init, (0, 0, None))
        if not self.runner.restore(init, keys, self.rates, self.stream):
            self.runner.state = init(keys, self.rates, self.stream)
        folder.keep_rows(self.measured)

    def _compile(self, placement):
        program = self.program

        def test(state, own, shared, first, last):
            return program.test(state, *shared, first, last)

        self.test = placement.over_steps(test)
        self.finish_task = placement.over_runs(program.finish_task, (0, 0, None), donate_argnums=0)

    @property
    def measured(self) -> int:
        """The number of tasks after which the accuracy was measured last; -1: never."""
        return first_of(self.runner.state.measured)

    # ---- the run

    def to_the_end(self):
        runner = self.runner
        if self.measured < 0:
            self.measure(0)
        while self.measured < self.tasks:
            runner.lap()
            end = (self.measured + 1) * self.program.batches_per_task
            runner.train(end, self.tell_training)
            train_seconds = runner.lap()
            self.measure(self.measured + 1)
            self.folder.log_timing(
                task=self.measured, train_seconds=train_seconds, test_seconds=runner.lap()
            )
        return runner.to_host(runner.state.accuracy)

    def measure(self, done):
        """Measure after `done` tasks, write the row and save."""
        runner = self.runner
        first, last = map(int, measured_tasks(self.config, done, self.tasks))
        self.test_tasks(done, first, last)
        if not runner.may_diverge:
            measured = runner.to_host(runner.state.accuracy)[:, done, first:last]
            runner.check_all_finite("an output on the test images", measured)
        runner.state, row = self.finish_task(runner.state, self.rates, np.int32(done))
        row = runner.to_host(row)
        accuracy = row.pop("test_accuracy")
        if not done:  # no batch has been seen
            row = {"sparsity": row["sparsity"]}
        row = {"task": done, "step": runner.step, **plain(row)}
        row["test_accuracy"] = {f"task {j}": plain(accuracy[:, j]) for j in range(first, last)}
        runner.add_row(row)

    def test_tasks(self, done, first, last):
        take = functools.partial(self.runner.take, self.test, (self.stream, np.int32(done)))

        def tell():
            self.tell("test", done / self.tasks)

        self.runner.advance("test", first, last, take, tell, save=False)

    # ---- progress

    @property
    def batches(self) -> int:
        """Finished batches of the current task."""
        return self.runner.step - max(self.measured, 0) * self.program.batches_per_task

    def tell_training(self):
        self.tell("train", self.batches / self.program.batches_per_task)

    def tell(self, stage, done):
        stage = stage if "step" in self.runner.seconds_per else "compile"
        task, step = max(self.measured, 0), self.runner.step
        means = self.runner.means(self.batches)
        self.hooks.progress(Progress(stage, task, step, done, self.seconds_left(), means))

    def seconds_left(self):
        step, test = (self.runner.seconds_per.get(unit) for unit in ("step", "test"))
        if step is None or test is None:
            return None
        batches = self.tasks * self.program.batches_per_task - self.runner.step
        bounds = [
            measured_tasks(self.config, done, self.tasks)
            for done in range(self.measured + 1, self.tasks + 1)
        ]
        return batches * step + sum(int(last - first) for first, last in bounds) * test
