"""The trials of a study as numbered slots that workers take; none is lost or counted twice.

A study has one slot for each trial that was asked for. A slot is filled by the first of its trials
that has not failed. A trial whose worker died fails after a while, and the slot gets a new trial
with the same values. Two workers may add a trial to one slot at the same time; the later one is
given up when it is taken. So the rules need nothing from the database but that a trial changes its
state once.
"""

import math
import os
import random
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

# How often a worker says that it lives, and after how many silent seconds its trials fail.
BEAT_SECONDS = 30
GRACE_SECONDS = 120
# A slot is given up after so many trials whose workers died: they may have run out of memory.
MOST_ATTEMPTS = 3

_WORKER = f"{socket.gethostname()}:{os.getpid()}"


class Slots:
    """The slots of a study, as one worker sees them.

    Args:
      study: the study.
      points: for each slot the values that are set beforehand; {} if the sampler draws them.
      space: name -> distribution of every value.

    Examples:
      >>> slots = Slots(study, [{}] * 64, space)
      >>> for trial in slots.take(8):
      ...     slots.finish(trial, value(trial.params))
    """

    def __init__(
        self,
        study: optuna.Study,
        points: Sequence[Mapping[str, Any]],
        space: Mapping[str, BaseDistribution],
    ):
        self.study, self.points, self.space = study, points, space
        self._looked = -math.inf  # when dead workers were last looked for
        self._silent: dict[int, float] = {}  # trial -> when it was first seen without a worker

    # ---- what there is

    def trials(self) -> list[list[FrozenTrial]]:
        """The trials of each slot in the order of their numbers."""
        by_slot: list[list[FrozenTrial]] = [[] for _ in self.points]
        for trial in self.study.get_trials(deepcopy=False):
            slot = trial.user_attrs.get("slot", -1)
            if 0 <= slot < len(by_slot):
                by_slot[slot].append(trial)
        return by_slot

    def filled(self) -> list[FrozenTrial]:
        """For each slot that has one, its first trial that has not failed."""
        firsts = (next(filter(_alive, trials), None) for trials in self.trials())
        return [trial for trial in firsts if trial is not None]

    def finished(self) -> list[FrozenTrial]:
        """The trials that count: finished, and at most one of each slot."""
        return [trial for trial in self.filled() if trial.state.is_finished()]

    def all_finished(self) -> bool:
        """Whether every slot has a finished trial or was given up."""
        return all(_given_up(t) or _state(t).is_finished() for t in self.trials())

    def given_up(self) -> list[int]:
        """The slots whose workers died too often."""
        return [slot for slot, trials in enumerate(self.trials()) if _given_up(trials)]

    # ---- taking

    def take(self, count: int) -> list[Trial]:
        """Take up to `count` trials and draw their values; [] if others have all that is left."""
        self._fail_dead()
        # If another worker was faster, this makes a new trial, which has no slot.
        with quiet():
            asked = [self.study.ask(dict(self.space)) for _ in range(self.refill(count))]
        by_slot = self.trials() if asked else []
        taken = [trial for trial in asked if _is_first(trial, by_slot)]
        for trial in asked:
            if trial not in taken:
                self._fail(trial, "surplus")
        return taken

    def refill(self, count: int) -> int:
        """Add trials to empty slots until `count` of them wait; returns how many wait, at most.

        Not one to every empty slot: each of a thousand workers might do so at the same time.
        """
        by_slot = self.trials()
        states = [trial.state for trials in by_slot for trial in trials]
        empty = [i for i, own in enumerate(by_slot) if not any(map(_alive, own))]
        empty = [slot for slot in empty if not _given_up(by_slot[slot])]
        if TrialState.RUNNING in states:  # there are other workers, which may fill slots now
            random.shuffle(empty)
        waiting = states.count(TrialState.WAITING)
        for slot in empty[: max(0, count - waiting)]:
            waiting += 1
            trials = by_slot[slot]
            values = trials[-1].params if trials else {}
            complete = values.keys() == self.space.keys()
            point = values if complete else self.points[slot]
            self.study.enqueue_trial(dict(point), user_attrs={"slot": slot})
        return min(count, waiting)

    def _fail_dead(self) -> None:
        """Let the trials of dead workers fail; now and then, because it reads the whole study."""
        if time.monotonic() - self._looked < GRACE_SECONDS / 4:
            return
        self._looked = time.monotonic()
        with quiet():
            optuna.storages.fail_stale_trials(self.study)
        # A worker killed before its first sign of life: Optuna does not fail such a trial.
        now = time.monotonic()
        running = self.study.get_trials(False, (TrialState.RUNNING,))
        silent = [trial.number for trial in running if "worker" not in trial.user_attrs]
        self._silent = {number: self._silent.get(number, now) for number in silent}
        for number, since in self._silent.items():
            if now - since > GRACE_SECONDS:
                self._tell(number, state=TrialState.FAIL)

    # ---- finishing

    def finish(self, trial: Trial, value: float | None) -> bool:
        """Store the value of a trial, or that it was pruned (None).

        Returns whether it counts: not if the trial has failed meanwhile, because this worker was
        silent for too long.
        """
        if value is None:
            return self._tell(trial.number, state=TrialState.PRUNED)
        return self._tell(trial.number, values=value)

    def release(self, trials: Sequence[Trial]) -> None:
        """Give up unfinished trials, so that another worker takes them at once."""
        for trial in trials:
            if _unfinished(self.study, trial):
                self._fail(trial, "released")

    def _fail(self, trial: Trial, reason: str) -> None:
        """End a trial in a way that does not count as an attempt."""
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr(reason, True)
            self._tell(trial.number, state=TrialState.FAIL)

    def _tell(self, number: int, **outcome: Any) -> bool:
        try:
            self.study.tell(number, **outcome)
        except (UpdateFinishedTrialError, ValueError):  # ValueError: not running any more
            if number in [t.number for t in self.study.get_trials(False, (TrialState.RUNNING,))]:
                raise
            return False
        return True

    @contextmanager
    def held(self, trials: Sequence[Trial], storage: Any) -> Iterator[None]:
        """Say regularly that these trials' worker lives; release them on any exception."""
        stop = threading.Event()
        thread = threading.Thread(target=_beat, args=(trials, storage, stop), daemon=True)
        for trial in trials:
            storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr("worker", _WORKER)
        thread.start()
        try:
            yield
        except BaseException:
            self.release(trials)
            raise
        finally:
            stop.set()
            thread.join()


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings that a function is new, or that `held` is our business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with")
        yield


def _beat(trials: Sequence[Trial], storage: Any, stop: threading.Event) -> None:
    """Record heartbeats; a database that is away for a moment is asked again."""
    try:
        while not stop.wait(BEAT_SECONDS):
            for trial in trials:
                try:
                    storage.record_heartbeat(trial._trial_id)
                except Exception:
                    break
    finally:
        storage.remove_session()


def _is_first(trial: Trial, by_slot: Sequence[Sequence[FrozenTrial]]) -> bool:
    """Whether a trial is the one that fills its slot."""
    slot = trial.user_attrs.get("slot", -1)
    if not 0 <= slot < len(by_slot):
        return False
    return next(filter(_alive, by_slot[slot])).number == trial.number


def _alive(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.FAIL


def _state(trials: Sequence[FrozenTrial]) -> TrialState:
    return next((trial.state for trial in trials if _alive(trial)), TrialState.WAITING)


def _given_up(trials: Sequence[FrozenTrial]) -> bool:
    """Whether the workers of all of a slot's trials died, and too often."""
    if any(map(_alive, trials)):
        return False
    died = [t for t in trials if not {"surplus", "released"} & t.user_attrs.keys()]
    return len(died) >= MOST_ATTEMPTS


def _unfinished(study: optuna.Study, trial: Trial) -> bool:
    running = study.get_trials(False, (TrialState.RUNNING,))
    return any(other.number == trial.number for other in running)
