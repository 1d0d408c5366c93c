"""The host's side of every run: advance in segments, report, save, stop, go on."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse.checks import leaves_by_name
from jaxsparse.training.checkpoints import Checkpoints
from jaxsparse.training.environment import check_environment
from jaxsparse.training.errors import Diverged, RunError, Stopped
from jaxsparse.training.program import Program
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.seeds import Placement

# A compiled call is cut to about this long, so that progress, Ctrl-C and SIGTERM are prompt.
SEGMENT_SECONDS = 1.0
# Within a long epoch or task, the state is saved this often.
SAVE_SECONDS = 300.0


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
      stage: "compile", "pretraining", "train", "validation" or "test".
      epoch: epochs, or tasks of a stream, finished.
      step: meta-steps, or batches of a stream, taken.
      done: part of the stage done, in [0, 1].
      seconds_left: estimate for the whole run; None before the first measurement.
      metrics: means over the present epoch or task so far: loss, accuracy, sparsity; empty before
        its first step.
    """

    stage: str
    epoch: int
    step: int
    done: float
    seconds_left: float | None
    metrics: dict[str, float]


class Hooks(NamedTuple):
    """What a run asks of, and tells, its caller.

    Attributes:
      progress: called with a `Progress` about once a second.
      row: called with each epoch's, or task's, metrics.
      warn: called with one line about something that went wrong and was dealt with.
      should_stop: asked about once a second; when true the run saves and raises `Stopped`.
    """

    progress: Callable[[Progress], None] = lambda progress: None
    row: Callable[[dict[str, Any]], None] = lambda row: None
    warn: Callable[[str], None] = lambda line: None
    should_stop: Callable[[], bool] = lambda: False


class Runner:
    """A run on the host: the state on the devices, and the loop that advances it.

    A checkpoint holds the runs of a program in their order, so that any number of devices can go
    on with it.

    Args:
      program: the pure functions of one seed.
      folder: the run's folder, within its lock.
      hooks: see `Hooks`.
      placement: which device computes which run.
      own: what tells the runs apart, the arguments of `program.train`, led by the axis of runs.
      data: what they share, already on the devices.
      first_seed: of the first run, for messages.
      may_diverge: go on where a loss is not finite.

    Example:
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
        """What tells the runs apart, as they lie at first."""
        return self.by_turn[0]

    # ---- where the run is

    def position(self) -> dict[str, int]:
        """How far the state is: "step", and what else a checkpoint's record should say."""
        return {name: first_of(x) for name, x in self.program.position(self.state).items()}

    @property
    def step(self) -> int:
        """Steps taken."""
        return first_of(self.program.position(self.state)["step"])

    def to_host(self, tree: Any) -> Any:
        """Arrays on the host, led by the axis of runs in their order."""
        return self.placement.to_host(tree)

    def means(self, steps: int) -> dict[str, float]:
        """Means of the state's totals over its runs and over `steps`; empty before the first."""
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
        """Let a function made by the placement's `over_steps` change the state; wait for it."""
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
        """Take some steps, or whatever is counted, in segments of about a second.

        Args:
          unit: what is counted, in `seconds_per`.
          first: the number of the first.
          end: that after the last.
          take: takes those from its first argument to before its second, and waits for them.
          tell: called before each segment, to report progress.
          save: whether the state should be saved after a segment, where the last checkpoint is old.

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
            if save and time.monotonic() - self.saved_at > SAVE_SECONDS:
                self.save()

    def segment(self, left: int, unit: str) -> int:
        """How many of those left to take in one compiled call."""
        pace = self.seconds_per.get(unit)
        least = self.placement.turns  # worth a call of their own
        return 1 if pace is None else int(min(max(SEGMENT_SECONDS / pace, least), left))

    def timed(self, unit: str, count: int, function: Callable, *args: Any) -> None:
        """Call `function`; learn the pace of `unit` from it, compilation apart."""
        begun = time.monotonic()
        function(*args)
        seconds = time.monotonic() - begun
        if unit in self.seconds_per:
            self.seconds_per[unit] = seconds / count
        else:
            # The first call compiles; it tells little about the next.
            self.seconds_per[unit] = SEGMENT_SECONDS
            since_start = round(time.monotonic() - self.started, 3)
            self.folder.log_timing(first=unit, seconds=round(seconds, 3), since_start=since_start)

    # ---- saving and going on

    def restore(self, init: Callable, *args: Any) -> bool:
        """Take the newest checkpoint's state; False where the run has not got so far.

        The first checkpoint is due as soon as there is anything to save: before the first row that
        training leads to.

        Args:
          init: makes the state that a run starts from.
          *args: its arguments, or their shapes and dtypes.

        Raises:
          RunError: there are such rows, and nothing to go on from.
        """
        template = self.placement.stored_shapes(jax.eval_shape(init, *args))
        restored = self.checkpoints.restore(template, self.hooks.warn)
        unit = self.folder.unit
        if restored is None and (rows := self.folder.rows()) and rows[-1][unit]:
            raise RunError(
                f"{self.folder.path} has the metrics of {unit} {rows[-1][unit]} and no checkpoint"
                f" to go on from: put back its {self.checkpoints.path.name}/, or begin a new run"
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
          Diverged: what was learned is not finite; the earlier checkpoints stay as they are.
        """
        if not self.may_diverge:
            learned = self.to_host(self.program.learned(self.state))
            for name, leaf in leaves_by_name(learned).items():
                self.check_all_finite(f"{name} of what is learned", leaf)
        self.checkpoints.save(self.placement.stored(self.state), self.position())
        self.saved_at = time.monotonic()

    def stop_if_asked(self) -> None:
        """Save and raise `Stopped` where the caller wants the run to stop."""
        if self.hooks.should_stop():
            self.save()
            raise Stopped(f"stopped at {self.program.unit} {self.step}")

    def add_row(self, row: dict[str, Any], save: bool = True) -> None:
        """Write the row of a period that is over, and a checkpoint; tell the caller."""
        self.folder.add_row(row)
        if save:
            self.save()
        self.hooks.row(row)

    # ---- what is not finite

    def check_finite(self) -> None:
        """Raise `Diverged` where a seed has a step whose loss was not finite."""
        steps = self.to_host(self.state.first_nonfinite_step)
        if (steps >= 0).any() and not self.may_diverge:
            seed = int(np.argmax(steps >= 0))
            raise Diverged(
                f"the loss of seed {self.first_seed + seed} is not finite at"
                f" {self.program.unit} {steps[seed]}"
            )

    def check_all_finite(self, name: str, values: Any) -> None:
        """Raise `Diverged` unless all of these numbers are finite; they are led by the seeds."""
        values = np.asarray(values)
        finite = np.isfinite(values.reshape(len(values), -1)).all(1)
        if not finite.all():
            raise Diverged(
                f"{name} is not finite with seed {self.first_seed + int(np.argmin(finite))} after"
                f" {self.program.unit} {self.step}"
            )


def first_of(x: Any) -> int:
    """The number that all runs share."""
    return int(np.ravel(x)[0])


def plain(tree: Any) -> Any:
    """Arrays [seeds] as floats, a list where there are several seeds."""

    def as_floats(x):
        values = [float(v) for v in np.asarray(x)]
        return values if len(values) > 1 else values[0]

    return jax.tree.map(as_floats, tree)
