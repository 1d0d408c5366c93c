"""One worker of a sweep: take trials, run them, store their values."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import Trial

from experiments import runs
from experiments.sweep.definition import Sweep
from experiments.sweep.report import SweepReport
from experiments.sweep.slots import Slots
from jaxsparse.training import ConfigError, Diverged, Hooks, Stopped

# How often a worker without trials looks for new ones.
WAIT_SECONDS = 1.0


def work(
    sweep: Sweep,
    slots: Slots,
    storage: RDBStorage,
    data: Any,
    report: SweepReport,
    should_stop: Callable[[], bool],
) -> None:
    """Take and run trials until every slot is finished; waits for the trials of other workers.

    Raises:
      Stopped: asked to stop; unfinished trials are free for other workers.
    """
    while not slots.all_finished():
        if should_stop():
            raise Stopped("stopped between trials")
        taken = slots.take(sweep.flags.batch)
        if not taken:
            report.waiting(slots)
            time.sleep(WAIT_SECONDS)
            continue
        with slots.held(taken, storage):
            for group in grouped(sweep, slots, taken):
                _Batch(sweep, slots, group, report, should_stop).run(data)


def grouped(
    sweep: Sweep, slots: Slots, trials: Sequence[Trial]
) -> Iterator[list[tuple[Trial, Any]]]:
    """Groups of trials with their configurations; those of a group can share a program.

    A trial whose settings do not go together is pruned.
    """
    groups: dict[Any, list[tuple[Trial, Any]]] = {}
    for trial in trials:
        try:
            config = trial_config(sweep, trial.params)
        except ConfigError as error:
            trial.set_user_attr("refused", str(error))
            slots.finish(trial, None)
            continue
        shape = {n: v for n, v in dataclasses.asdict(config).items() if n not in sweep.tuned.RATES}
        # Without rates that are arrays, each trial is a program.
        key = (str(shape), None if sweep.tuned.RATES else trial.number)
        groups.setdefault(key, []).append((trial, config))
    yield from groups.values()


def trial_config(sweep: Sweep, values: dict[str, Any]) -> Any:
    """The configuration of a trial; ConfigError if its values do not go together."""
    config = dataclasses.replace(sweep.config, **values)
    return sweep.tuned.held_out(config, sweep.flags.trial_seeds)


class _Batch:
    """Trials that run in one program."""

    def __init__(
        self,
        sweep: Sweep,
        slots: Slots,
        group: Sequence[tuple[Trial, Any]],
        report: SweepReport,
        should_stop: Callable[[], bool],
    ):
        self.sweep, self.slots, self.report, self.asked = sweep, slots, report, should_stop
        self.trials = [trial for trial, _ in group]
        self.configs = [config for _, config in group]
        self.hopeless = [False] * len(group)

    def run(self, data: Any) -> None:
        """Run the trials and store their values; they are pruned if all of them are hopeless."""
        path = self.sweep.out / "trials" / f"{self.trials[0].number:05}"
        record = {
            "trials": [
                {"number": trial.number, **trial.params, "config": dataclasses.asdict(config)}
                for trial, config in zip(self.trials, self.configs, strict=True)
            ]
        }
        family = self.sweep.tuned.family
        folder = runs.ready_run(family, path, self.configs[0], data, **record)
        hooks = Hooks(self.report.progress, self._row, self.report.warn, self._should_stop)
        values: Sequence[float | None]
        try:
            values = self.sweep.tuned.learn(self.configs, data, folder, hooks)
        except Stopped:
            if self.asked() or not all(self.hopeless):
                raise
            values = [None] * len(self.trials)
        except Diverged:  # only of a program with one trial: others carry on
            values = [0.0]
        for trial, value in zip(self.trials, values, strict=True):
            if self.slots.finish(trial, value):
                self.report.finished(trial, value)

    def _row(self, row: dict[str, Any]) -> None:
        """Report the values so far, and note which trials are hopeless."""
        if not self.sweep.flags.prune:
            return
        place, values = self.sweep.tuned.so_far(row, len(self.trials))
        for index, (trial, value) in enumerate(zip(self.trials, values, strict=False)):
            try:
                trial.report(value, place)
                self.hopeless[index] = trial.should_prune()
            except UpdateFinishedTrialError:  # failed: this worker was silent for too long
                self.hopeless[index] = True

    def _should_stop(self) -> bool:
        return self.asked() or all(self.hopeless)
