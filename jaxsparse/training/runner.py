"""The host loop of every run: advance in segments, report, save, stop, resume."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse.checks import leaves_by_name
from jaxsparse.training import processes
from jaxsparse.training.checkpoints import Checkpoints
from jaxsparse.training.environment import check_environment
from jaxsparse.training.errors import Diverged, RunError, Stopped
from jaxsparse.training.program import Program
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.seeds import Placement

# A compiled call lasts about this long, so that progress, Ctrl-C and SIGTERM are handled promptly.
SEGMENT_SECONDS = 1.0
# How often the state is saved within a long epoch or task.
SAVE_SECONDS = 300.0


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
      stage: "compile", "pretraining", "train", "validation" or "test".
      epoch: finished epochs, tasks or intervals.
      step: finished meta-steps, batches or timesteps.
      done: finished fraction of the stage, in [0, 1].
      seconds_left: estimate for the whole run; None before the first measurement.
      metrics: means over the current epoch or task so far (loss, accuracy, sparsity); empty before
        its first step.
    """

    stage: str
    epoch: int
    step: int
    done: float
    seconds_left: float | None
    metrics: dict[str, float]


class Hooks(NamedTuple):
    """Callbacks of a run. The defaults do nothing.

    Attributes:
      progress: called with a `Progress` about once a second.
      row: called with the metrics of each epoch, task or interval.
      warn: called with a one-line warning.
      should_stop: called about once a second; if it returns True, the run saves its state and
        raises `Stopped`.
    """

    progress: Callable[[Progress], None] = lambda progress: None
    row: Callable[[dict[str, Any]], None] = lambda row: None
    warn: Callable[[str], None] = lambda line: None
    should_stop: Callable[[], bool] = lambda: False


class Runner:
    """Holds the state of a program's runs on the devices, and advances it.

    A program has one run per seed (or per seed and rates); all arrays have a leading axis of runs.
    Checkpoints store the runs in order, so a run can be resumed on any number of devices.

    Args:
      program: the pure functions of one run.
      folder: the run's folder; the caller holds its lock.
      hooks: see `Hooks`.
      placement: which device computes which run.
      own: the per-run arguments of `program.train`, with a leading axis of runs.
      data: the arguments that all runs share, already on the devices.
      first_seed: seed of the first run, for messages.
      may_diverge: continue if a loss is not finite.

    Examples:
      >>> runner = Runner(program, folder, hooks, place_runs(2), (keys,), data)
      >>> init = runner.placement.over_runs(program.init, (0,))
      >>> if not runner.restore(init, *runner.own):
      ...     runner.state = init(*runner.own)
      >>> runner.train(100, tell)
    """

    state: Any

    def __init__(
        self,
        program: Program,
        folder: RunFolder,
        hooks: Hooks,
        placement: Placement,
        own: tuple[Any, ...],
        data: Any,
        first_seed: int = 0,
        may_diverge: bool = False,
    ):
        self.program, self.folder, self.hooks = program, folder, hooks
        self.placement, self.data = placement, data
        self.first_seed, self.may_diverge = first_seed, may_diverge
        check_environment(folder.config(), folder.path, hooks.warn)
        self.checkpoints = Checkpoints(folder.path / "checkpoints")
        self.started = self.saved_at = self._lap = time.monotonic()
        self.seconds_per: dict[str, float] = {}
        self.by_turn = [placement.put(own, turn) for turn in range(placement.turns)]

        def train(state, own, data, first, last):
            return program.train(state, *own, data, last - first)

        self._train = placement.over_steps(train)

    @property
    def own(self) -> tuple[Any, ...]:
        """The per-run arguments on the devices, placed as in the first turn."""
        return self.by_turn[0]

    # ---- where the run is

    def position(self) -> dict[str, int]:
        """How far the run is, as stored in a checkpoint: "step" and more."""
        return self.program.position(self.state)

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.position()["step"]

    def to_host(self, tree: Any) -> Any:
        """Copy arrays to the host; the leading axis has the runs in order."""
        return self.placement.to_host(tree)

    def means(self, steps: int) -> dict[str, float]:
        """The state's totals, averaged over the runs and over `steps`; empty if `steps` is 0."""
        totals = self.state.totals.items() if steps else ()
        return {name: float(np.mean(self.to_host(total))) / steps for name, total in totals}

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self._lap = self._lap, time.monotonic()
        return round(self._lap - before, 3)

    # ---- advancing

    def train(self, end: int, tell: Callable[[], None]) -> None:
        """Train up to step `end`; see `advance`."""
        take = functools.partial(self.take, self._train, self.data)
        self.advance("step", self.step, end, take, tell)

    def take(self, function: Callable, shared: Any, first: int, last: int) -> None:
        """Advance the state with a function made by `Placement.over_steps`, and wait for it."""
        self.state = function(self.state, self.by_turn, shared, first, last)
        jax.block_until_ready(self.state)

    def advance(
        self,
        unit: str,
        first: int,
        end: int,
        take: Callable[[int, int], None],
        tell: Callable[[], None],
        save: bool = True,
    ) -> None:
        """Take the steps first, ..., end - 1 in segments of about a second.

        Args:
          unit: the kind of step, a key of `seconds_per`.
          first: the first step.
          end: one past the last step.
          take: `take(a, b)` takes the steps a, ..., b - 1 and waits for them.
          tell: called before each segment, to report progress.
          save: save the state after a segment if the last checkpoint is old.

        Raises:
          Stopped: asked to stop; the state is saved.
          Diverged: a loss was not finite.
        """
        while first < end:
            tell()
            last = first + self.segment(end - first, unit)
            self.timed(unit, last - first, take, first, last)
            first = last
            self.check_finite()
            self.stop_if_asked()
            if save and processes.number_from_first(self._save_is_due()):
                self.save()

    def segment(self, left: int, unit: str) -> int:
        """How many of the `left` steps to take in one compiled call, the same in all processes."""
        pace = self.seconds_per.get(unit)
        least = self.placement.turns  # at least one step per turn
        count = 1 if pace is None else int(min(max(SEGMENT_SECONDS / pace, least), left))
        return processes.number_from_first(count)

    def _save_is_due(self) -> bool:
        return time.monotonic() - self.saved_at > SAVE_SECONDS

    def timed(self, unit: str, count: int, function: Callable, *args: Any) -> None:
        """Call `function` and measure the seconds per `unit`, without compilation."""
        begun = time.monotonic()
        function(*args)
        seconds = time.monotonic() - begun
        if unit in self.seconds_per:
            self.seconds_per[unit] = seconds / count
        else:
            # The first call compiles, so its time says little about the next calls.
            self.seconds_per[unit] = SEGMENT_SECONDS
            since_start = round(time.monotonic() - self.started, 3)
            self.folder.log_timing(first=unit, seconds=round(seconds, 3), since_start=since_start)

    # ---- saving and resuming

    def restore(self, init: Callable, *args: Any) -> bool:
        """Load the state of the newest checkpoint; False if there is no checkpoint yet.

        Without a checkpoint the next segment of training saves one, before the first row of
        metrics that follows training. Rows without a checkpoint therefore mean that files are lost.

        Args:
          init: makes the initial state.
          *args: its arguments, or their shapes and dtypes.

        Raises:
          RunError: the folder has such rows but no checkpoint.
        """
        template = self.placement.stored_shapes(jax.eval_shape(init, *args))
        restored = self.checkpoints.restore(template, self.hooks.warn)
        unit = self.folder.unit
        if restored is None and (rows := self.folder.rows()) and rows[-1][unit]:
            raise RunError(
                f"{self.folder.path} has the metrics of {unit} {rows[-1][unit]} and no checkpoint"
                f" to resume from: restore its {self.checkpoints.path.name}/, or start a new run"
                " in another folder"
            )
        if restored is None:
            self.saved_at = float("-inf")
            return False
        self.saved_at = time.monotonic()
        self.state = self.placement.put(restored)
        return True

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
          Diverged: a trained parameter is not finite; earlier checkpoints are unchanged.
        """
        if not self.may_diverge:
            learned = self.to_host(self.program.learned(self.state))
            for name, leaf in leaves_by_name(learned).items():
                self.check_all_finite(f"the parameter {name}", leaf)
        self.checkpoints.save(self.placement.stored(self.state), self.position())
        self.saved_at = time.monotonic()

    def stop_if_asked(self) -> None:
        """Save and raise `Stopped` if the caller asks the run, in any process, to stop."""
        if processes.any_process(self.hooks.should_stop()):
            self.save()
            raise Stopped(f"stopped at {self.program.unit} {self.step}")

    def add_row(self, row: dict[str, Any], save: bool = True) -> None:
        """Write the metrics of a finished epoch, task or interval; save; tell the caller."""
        self.folder.add_row(row)
        if save:
            self.save()
        self.hooks.row(row)

    # ---- non-finite numbers

    def check_finite(self) -> None:
        """Raise `Diverged` if the loss of any seed was not finite at some step."""
        steps = self.to_host(self.state.first_nonfinite_step)
        if (steps >= 0).any() and not self.may_diverge:
            seed = int(np.argmax(steps >= 0))
            raise Diverged(
                f"the loss of seed {self.first_seed + seed} is not finite at"
                f" {self.program.unit} {steps[seed]}"
            )

    def check_all_finite(self, name: str, values: Any) -> None:
        """Raise `Diverged` unless all of `values`, an array [seeds, ...], are finite."""
        values = np.asarray(values)
        finite = np.isfinite(values.reshape(len(values), -1)).all(1)
        if not finite.all():
            raise Diverged(
                f"{name} is not finite with seed {self.first_seed + int(np.argmin(finite))} after"
                f" {self.program.unit} {self.step}"
            )


def plain(tree: Any) -> Any:
    """Turn each array [seeds] into a float, or into a list if there are several seeds."""

    def as_floats(x):
        values = [float(v) for v in np.asarray(x)]
        return values if len(values) > 1 else values[0]

    return jax.tree.map(as_floats, tree)
