"""The host's side of a run over a stream: drive, report, save, go on, stop."""

import time
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
from jaxsparse.training.host import Hooks, Progress, RunsHost, learned, plain
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.statistics import mean_and_std


def run_stream(
    config: ContinualConfig, stream: TaskStream, folder: RunFolder, hooks: Hooks
) -> dict[str, Any]:
    """Learn the stream from wherever the folder's checkpoints are, and write the result.

    Args:
      config: the run's configuration.
      stream: the tasks.
      folder: the run's folder, its unit "task".
      hooks: see `Hooks`.

    Returns:
      The result: see `make_result`.

    Raises:
      Stopped: asked to stop; the state is saved.
      Diverged: the loss is not finite; the last good checkpoint is kept.
      RunError: the folder cannot be read or written.

    Example:
      >>> result = run_stream(config, stream, RunFolder.create(path, {}, "task"), Hooks())
    """
    runs = [Run(seed, default_rates(config)) for seed in _seeds(config)]
    with folder.lock():
        accuracy = _StreamRun(config, runs, stream, folder, hooks).run()
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
    """Learn the stream at every point of a grid of rates, in one program.

    Args:
      config: the configuration, whose rates the grid replaces; `validation` must be set.
      grid: the points.
      stream: the tasks, measured on held-out training images.
      folder: as in `run_stream`.
      hooks: as in `run_stream`.

    Returns:
      {"points": for each point its rates, and mean and std over the seeds of RA, BTI, LA}.

    Raises:
      ConfigError: `config.validation` is not set.
      Stopped, Diverged, RunError: as in `run_stream`.

    Example:
      >>> grid = [Rates(alpha, 1.7, 0.1) for alpha in (0.05, 0.1, 0.15)]
      >>> result = scan_stream(config, grid, stream, folder, Hooks())
    """
    if not config.validation:
        raise ConfigError("validation must be set in a scan: the test images are read once")
    runs = [Run(seed, rates) for rates in grid for seed in _seeds(config)]
    with folder.lock():
        accuracy = _StreamRun(config, runs, stream, folder, hooks, may_diverge=True).run()
        # A network that has diverged is right about nothing.
        by_point = np.nan_to_num(accuracy).reshape(len(grid), config.seeds, *accuracy.shape[1:])
        result = {"points": [_point(*pair) for pair in zip(grid, by_point, strict=True)]}
        folder.write_result(result)
    return result


def _point(rates, accuracy):
    by_seed = [summaries(one) for one in accuracy.astype(np.float64)]
    means = {name: mean_and_std([seed[name] for seed in by_seed]) for name in SUMMARIES}
    return {**rates._asdict(), **means}


def _seeds(config):
    return range(config.seed, config.seed + config.seeds)


class Run(NamedTuple):
    """What tells the runs of one program apart."""

    seed: int
    rates: Rates


class _StreamRun(RunsHost):
    """The state of a run on the host; its arrays lead with the axis of runs."""

    unit = "batch"

    def __init__(self, config, runs, stream, folder, hooks, may_diverge=False):
        super().__init__(folder, hooks, len(runs))
        self.config, self.runs, self.tasks = config, runs, stream.num_tasks
        self.may_diverge, self.first_seed = may_diverge, config.seed
        self.program = make_program(config, stream)
        self.functions = self._jit()
        self.stream = self.placement.share(stream)
        keys = jnp.stack([jax.random.key(run.seed) for run in runs])
        rates = Rates(*jnp.array([run.rates for run in runs], jnp.float32).T)
        self.by_turn = [self._of_turn(keys, rates, t) for t in range(self.placement.turns)]
        init, start = self.functions["init"], (*self.by_turn[0][1:], self.stream)
        restored = self.restored(init, *start)
        self.state = init(*start) if restored is None else restored
        folder.keep_rows(self.measured)

    def _of_turn(self, keys, rates, turn):
        """What tells the runs apart, as they lie in that turn."""
        keys, rates = self.placement.put((keys, rates), turn)
        return self.functions["schedule"](keys, self.stream), keys, rates

    def _jit(self):
        program, placement = self.program, self.placement

        def train(state, by_run, stream, first, last):
            return program.train(state, *by_run, stream, last - first)

        def test(state, by_run, shared, first, last):
            return program.test(state, *shared, first, last)

        return {
            "schedule": placement.over_runs(program.schedule, (0, None)),
            "init": placement.over_runs(program.init, (0, 0, None)),
            "train": placement.over_steps(train),
            "test": placement.over_steps(test),
            "finish_task": placement.over_runs(program.finish_task, (0, 0, None), donate_argnums=0),
        }

    def learned(self, state):
        return learned(state.learner)

    @property
    def step(self) -> int:
        return int(self.state.step[0])

    @property
    def measured(self) -> int:
        """Tasks after which the accuracy was measured; -1: not even before the first."""
        return int(self.state.measured[0])

    def position(self):
        return {"step": self.step, "task": max(self.measured, 0)}

    # ---- the run

    def run(self):
        if self.measured < 0:
            self.measure(0)
        while self.measured < self.tasks:
            begun = time.monotonic()
            self.train_task()
            trained = time.monotonic()
            self.measure(self.measured + 1)
            self.folder.log_timing(
                task=self.measured,
                train_seconds=round(trained - begun, 3),
                test_seconds=round(time.monotonic() - trained, 3),
            )
        return self.placement.kept(self.state.accuracy)

    def train_task(self):
        per_task = self.program.batches_per_task
        end = (self.measured + 1) * per_task
        while self.step < end:
            self.tell("train", 1 - (end - self.step) / per_task)
            steps = self.segment(end - self.step)
            self.timed("step", steps, self.train_segment, steps)
            self.check_finite(self.placement.kept(self.state.bad_step))
            self.save_if_due()

    def train_segment(self, steps):
        self.state = self.functions["train"](self.state, self.by_turn, self.stream, 0, steps)
        jax.block_until_ready(self.state)

    def measure(self, done):
        """Measure after `done` tasks, log the row and save."""
        first, last = map(int, measured_tasks(self.config, done, self.tasks))
        task = first
        while task < last:
            self.tell("test", done / self.tasks)
            count = self.segment(last - task, "test")
            self.timed("test", count, self.test_segment, done, task, task + count)
            task += count
            self.stop_if_asked()
        if not self.may_diverge:
            measured = self.placement.kept(self.state.accuracy)[:, done, first:last]
            self.check_all_finite("an output on the test images", measured)
        rates = self.by_turn[0][2]
        self.state, row = self.functions["finish_task"](self.state, rates, jnp.int32(done))
        row = self.placement.kept(row)
        accuracy = row.pop("test_accuracy")
        if not done:  # no batch has been seen
            row = {"sparsity": row["sparsity"]}
        row = {"task": done, "step": self.step, **plain(row)}
        row["test_accuracy"] = {f"task {j}": plain(accuracy[:, j]) for j in range(first, last)}
        self.folder.add_row(row)
        self.save()
        self.hooks.row(row)

    def test_segment(self, done, first, last):
        shared = self.stream, jnp.int32(done)
        self.state = self.functions["test"](self.state, self.by_turn, shared, first, last)
        jax.block_until_ready(self.state)

    # ---- telling

    def tell(self, stage, done):
        batches = self.step - max(self.measured, 0) * self.program.batches_per_task
        totals = self.state.totals.items() if batches else ()
        means = {
            name: float(np.mean(self.placement.kept(total))) / batches for name, total in totals
        }
        stage = stage if "step" in self.seconds_per else "compile"
        self.hooks.progress(
            Progress(stage, max(self.measured, 0), self.step, done, self.seconds_left(), means)
        )

    def seconds_left(self):
        step, test = (self.seconds_per.get(unit) for unit in ("step", "test"))
        if step is None or test is None:
            return None
        batches = self.tasks * self.program.batches_per_task - self.step
        bounds = [
            measured_tasks(self.config, done, self.tasks)
            for done in range(self.measured + 1, self.tasks + 1)
        ]
        return batches * step + sum(int(last - first) for first, last in bounds) * test
