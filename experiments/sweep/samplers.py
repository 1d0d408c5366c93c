"""Samplers whose points do not depend on which worker draws them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler, TPESampler


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler of a sweep: "tpe", "random", or "grid", whose points are set beforehand.

    TPE takes running trials for bad ones (`constant_liar`), so that workers spread out.
    """
    if name == "tpe":
        return SlotSampler(lambda own: TPESampler(seed=own, constant_liar=True), seed)
    return SlotSampler(lambda own: RandomSampler(seed=own), seed)


class SlotSampler(BaseSampler):
    """Makes a new sampler for each trial, seeded by the sweep's seed and the trial's slot.

    With one seed for the whole process, workers started by the same command would draw the same
    points. With this one, two trials never share their random numbers.

    Args:
      make: `seed -> sampler`.
      seed: the sweep's seed.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int):
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: Any, trial: Any) -> None:
        """Reseed. Optuna calls it before it draws the values of a trial."""
        slot = trial.user_attrs.get("slot", trial.number)
        own = int(np.random.SeedSequence((self._seed, slot)).generate_state(1)[0])
        self._sampler = self._make(own)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        """See `BaseSampler`."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        """See `BaseSampler`."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        """See `BaseSampler`."""
        return self._sampler.sample_independent(study, trial, name, distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """See `BaseSampler`."""
        self._sampler.after_trial(study, trial, state, values)
