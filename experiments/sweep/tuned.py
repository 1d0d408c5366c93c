"""What a sweep needs to know of each family: how to run trials on held-out data."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from experiments import runs
from experiments.continual.load import check_size
from experiments.report import mean
from jaxsparse.training import Hooks, RunFolder
from jaxsparse.training.continual import ContinualConfig, Rates, default_rates, scan_stream
from jaxsparse.training.online import OnlineConfig

# What is added to the seeds of online runs for trials.
OTHER_STREAMS = 1_000_000


class Tuned:
    """A family whose settings a sweep can choose; each trial is a program of its own.

    Attributes:
      family: the family.
      RATES: settings that are arrays of the compiled program; trials may differ in them.
      PROBLEM: settings that define the problem and cannot be chosen.
      SET: settings that the sweep sets itself.
      SCORE: the entry of each seed in a trial's result that its value is the mean of.
      VALUE: what a trial's value is, in words.
      TEST: what the winner is measured on, in words.
    """

    RATES: tuple[str, ...] = ()
    PROBLEM: tuple[str, ...]
    SET: tuple[str, ...] = ()
    SCORE: str
    VALUE: str
    TEST = "on the test split"

    def __init__(self, family: runs.Family):
        self.family = family

    def held_out(self, config: Any, seeds: int) -> Any:
        """The configuration of a trial with this many seeds; it never reads the test split."""
        raise NotImplementedError

    def load_data(self, config: Any) -> Any:
        """The data of a trial, without the test split; `config` comes from `held_out`."""
        return self.family.load_data(config)

    def learn(
        self, configs: Sequence[Any], data: Any, folder: RunFolder, hooks: Hooks
    ) -> list[float]:
        """Run the trials of a program, which differ only in `RATES`, and return their values."""
        (config,) = configs
        result = self.family.learn(config, data, folder, hooks)
        return [mean([seed[self.SCORE] for seed in result["seeds"]])]

    def so_far(self, row: dict[str, Any], trials: int) -> tuple[int, list[float]]:
        """The place of a row of metrics in the run, and the value of each trial there."""
        raise NotImplementedError

    def tested(self, result: dict[str, Any]) -> float:
        """The accuracy on the test split in the result of a run."""
        raise NotImplementedError


class TunedContinual(Tuned):
    """Streams of tasks: RA on held-out training images. All rates share one program."""

    RATES = Rates._fields
    PROBLEM = ("seed", "seeds", "data_seed", "tasks", "samples_per_task")
    SET = ("validation",)
    VALUE = "RA on held-out training images"

    def held_out(self, config: ContinualConfig, seeds: int) -> ContinualConfig:
        """See `Tuned`."""
        return dataclasses.replace(config, validation=True, seeds=seeds)

    def learn(
        self, configs: Sequence[ContinualConfig], data: Any, folder: RunFolder, hooks: Hooks
    ) -> list[float]:
        """See `Tuned`."""
        rates = [default_rates(config) for config in configs]
        check_size(configs[0], data, len(rates) * configs[0].seeds)
        points = scan_stream(configs[0], rates, data, folder, hooks)["points"]
        return [point["retained_accuracy"]["mean"] for point in points]

    def so_far(self, row: dict[str, Any], trials: int) -> tuple[int, list[float]]:
        """See `Tuned`: the mean over the tasks learned so far, as far as it was measured."""
        done = row["task"]
        measured = row["test_accuracy"]
        names = [name for j in range(done) if (name := f"task {j}") in measured]
        by_task = [_by_trial(measured[name], trials) for name in names]
        return done, [sum(values) / len(values) for values in zip(*by_task, strict=True)]

    def tested(self, result: dict[str, Any]) -> float:
        """See `Tuned`."""
        return result["retained_accuracy"]["mean"]


class TunedFewShot(Tuned):
    """Few-shot learning: the best accuracy on validation tasks. Each trial is a program."""

    PROBLEM = (
        *("seed", "seeds", "ways", "shots", "query_shots", "val_tasks", "test_tasks"),
        *("image_size", "ensemble"),
    )
    SCORE = "best_val_accuracy"
    VALUE = "accuracy on validation tasks"

    def held_out(self, config: Any, seeds: int) -> Any:
        """See `Tuned`. A run tests at its end; here one task of the validation classes is left."""
        return dataclasses.replace(config, seeds=seeds, test_tasks=1)

    def load_data(self, config: Any) -> Any:
        """See `Tuned`: validation images in place of the test images."""
        images = self.family.load_data(config)
        return {**images, "test": images["validation"]}

    def so_far(self, row: dict[str, Any], trials: int) -> tuple[int, list[float]]:
        """See `Tuned`."""
        return row["epoch"], [mean(row["val_accuracy"])] if row["epoch"] else []

    def tested(self, result: dict[str, Any]) -> float:
        """See `Tuned`."""
        return result["accuracy"]


class TunedOnline(Tuned):
    """Switching streams: the accuracy on other streams of the same images. A trial is a program.

    A stream has no part for tests. So a trial has seeds of its own, and with them other streams
    than the run.
    """

    PROBLEM = (*("p", "timesteps", "ways", "shots", "log_every", "seed", "seeds", "pretrain_seed"),)
    SCORE = "accuracy"
    VALUE = f"online accuracy on other streams, of the seeds plus {OTHER_STREAMS:,}"
    TEST = "on the streams of its seeds"

    def held_out(self, config: OnlineConfig, seeds: int) -> OnlineConfig:
        """See `Tuned`."""
        return dataclasses.replace(config, seed=config.seed + OTHER_STREAMS, seeds=seeds)

    def so_far(self, row: dict[str, Any], trials: int) -> tuple[int, list[float]]:
        """See `Tuned`: the accuracy on the timesteps so far; rows of the pretraining have none."""
        interval = row.get("interval", 0)
        return interval, [mean(row["accuracy"])] if interval else []

    def tested(self, result: dict[str, Any]) -> float:
        """See `Tuned`."""
        return result["accuracy"]["mean"]


def _by_trial(values: Any, trials: int) -> list[float]:
    """The mean over the seeds of each trial; 0 where a loss was not finite."""
    flat = values if isinstance(values, Sequence) else [values]
    numbers = [0.0 if x is None or math.isnan(x) else float(x) for x in flat]
    seeds = len(numbers) // trials
    return [sum(numbers[i * seeds : (i + 1) * seeds]) / seeds for i in range(trials)]
