"""What the host does in every run: segments, saving, stopping, telling."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse.checks import leaves_by_name
from jaxsparse.training.checkpoints import Checkpoints
from jaxsparse.training.environment import check_environment
from jaxsparse.training.errors import Diverged, RunError, Stopped
from jaxsparse.training.run_folder import RunFolder
from jaxsparse.training.seeds import place_runs

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


class Host(ABC):
    """The host's side of a run whose state lives on the device.

    A run sets `state`; `unit` is what its steps are called.
    """

    unit = "step"
    least = 1  # steps worth a call of their own, once the pace is known
    may_diverge = False
    first_seed = 0
    state: Any

    def __init__(self, folder: RunFolder, hooks: Hooks):
        self.folder, self.hooks = folder, hooks
        check_environment(folder.config(), folder.path, hooks.warn)
        self.checkpoints = Checkpoints(folder.path / "checkpoints")
        self.started = self.saved_at = time.monotonic()
        self.seconds_per: dict[str, float] = {}

    @abstractmethod
    def position(self) -> dict[str, int]:
        """How far the state is: "step", and what else a checkpoint's record should say."""

    def timed(self, unit: str, count: int, function: Callable, *args: Any) -> Any:
        """Call `function`; learn the pace of `unit` from it, compilation apart."""
        begun = time.monotonic()
        result = function(*args)
        seconds = time.monotonic() - begun
        if unit in self.seconds_per:
            self.seconds_per[unit] = seconds / count
        else:
            # The first call compiles; it tells little about the next.
            self.seconds_per[unit] = SEGMENT_SECONDS
            since_start = round(time.monotonic() - self.started, 3)
            self.folder.log_timing(first=unit, seconds=round(seconds, 3), since_start=since_start)
        return result

    def segment(self, left: int, unit: str = "step") -> int:
        """How many of the steps left, or whatever the unit is, to take in one compiled call."""
        pace = self.seconds_per.get(unit)
        return 1 if pace is None else int(min(max(SEGMENT_SECONDS / pace, self.least), left))

    @abstractmethod
    def learned(self, state: Any) -> Any:
        """What training has made of the parameters: what must be finite, led by the seeds."""

    def whole_state(self) -> Any:
        """The state as a checkpoint holds it."""
        return self.state

    def restore(self, template: Any) -> Any | None:
        """The newest checkpoint's state, None where the run has not got so far.

        The first checkpoint is due as soon as there is anything to save: before the first row that
        training leads to.

        Raises:
          RunError: there are such rows, and nothing to go on from.
        """
        restored = self.checkpoints.restore(template, self.hooks.warn)
        unit = self.folder.unit
        if restored is None and (rows := self.folder.rows()) and rows[-1][unit]:
            raise RunError(
                f"{self.folder.path} has the metrics of {unit} {rows[-1][unit]} and no checkpoint"
                f" to go on from: put back its {self.checkpoints.path.name}/, or begin a new run"
                " in another folder"
            )
        self.saved_at = float("-inf") if restored is None else time.monotonic()
        return restored

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
          Diverged: what was learned is not finite; the earlier checkpoints stay as they are.
        """
        state = self.whole_state()
        if not self.may_diverge:
            for name, leaf in leaves_by_name(self.learned(state)).items():
                self.check_all_finite(f"{name} of what is learned", leaf)
        self.checkpoints.save(state, self.position())
        self.saved_at = time.monotonic()

    def save_if_due(self) -> None:
        """Stop where that was asked for; write a checkpoint where the last one is old."""
        self.stop_if_asked()
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save()

    def stop_if_asked(self) -> None:
        """Save and raise `Stopped` where the caller wants the run to stop."""
        if self.hooks.should_stop():
            self.save()
            raise Stopped(f"stopped at {self.unit} {self.position()['step']}")

    def check_finite(self, bad_step: Any) -> None:
        """Raise `Diverged` where a seed's first step of infinite loss is not negative."""
        bad = np.asarray(bad_step)
        if (bad >= 0).any() and not self.may_diverge:
            seed = int(np.argmax(bad >= 0))
            raise Diverged(
                f"the loss of seed {self.first_seed + seed} is not finite at"
                f" {self.unit} {bad[seed]}"
            )

    def check_all_finite(self, name: str, values: Any) -> None:
        """Raise `Diverged` unless all of these numbers are finite; they are led by the seeds."""
        values = np.asarray(values)
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        if bad.any():
            raise Diverged(
                f"{name} is not finite with seed {self.first_seed + int(np.argmax(bad))} after"
                f" {self.unit} {self.position()['step']}"
            )


class RunsHost(Host):
    """The host's side of several runs that are divided among devices.

    A checkpoint holds the runs in their order, so that any number of devices can go on with it.
    """

    def __init__(self, folder: RunFolder, hooks: Hooks, runs: int):
        super().__init__(folder, hooks)
        self.placement = place_runs(runs)
        self.least = self.placement.turns

    def restored(self, init: Callable, *args: Any) -> Any | None:
        """The newest checkpoint's state, None where the run has not got so far.

        Args:
          init: makes the state that a run starts from.
          *args: its arguments, or their shapes and dtypes.
        """

        def in_order(x):
            return jax.ShapeDtypeStruct((self.placement.runs, *x.shape[1:]), x.dtype)

        template = jax.tree.map(in_order, jax.eval_shape(init, *args))
        restored = self.restore(template)
        return None if restored is None else self.placement.put(restored)

    def whole_state(self) -> Any:
        """The state without the places that lie idle."""
        return self.placement.kept(self.state)


def learned(state: Any) -> dict[str, Any]:
    """The parameters of a method's state, and of its gate where it has one."""
    return {name: getattr(state, name) for name in ("params", "mask") if hasattr(state, name)}


def plain(tree: Any) -> Any:
    """Arrays [seeds] as floats, a list where there are several seeds."""

    def as_floats(x):
        values = [float(v) for v in np.asarray(x)]
        return values if len(values) > 1 else values[0]

    return jax.tree.map(as_floats, tree)
