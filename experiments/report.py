"""The console output of a run: progress bar, rows, result."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from experiments import cli
from jaxsparse import training
from jaxsparse.nn.blocks import Blocks
from jaxsparse.training.environment import blocks_here

_BLOCKS = {
    "native": "native (C++ compiled for this processor)",
    "pallas": "pallas (a kernel for the first block, XLA's operations for the others)",
    "xla": "xla (XLA's operations)",
}


class _Console(Console):
    """Leaves broken pipes to the command."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class ConsoleReport:
    """Reports a run on the console; without a terminal, there is no progress bar.

    Args:
      header: a line that describes the run.
      path: the run's folder.
      unit: the name and number of the run's parts, for example ("epoch", 10).
      steps: steps of the whole run; None: progress is measured in units.
      metrics: the metrics shown next to the bar.
      blocks: the setting `blocks`; None for networks that do not use it.
    """

    def __init__(
        self,
        header: str,
        path: Path,
        unit: tuple[str, int],
        steps: int | None,
        metrics: tuple[str, ...],
        blocks: Blocks | None = None,
    ):
        self.header, self.path, self.unit, self.steps = header, path, unit, steps
        self.metrics, self.blocks = metrics, blocks
        # Paths are printed unchanged: no markup for their brackets, no wrapping.
        self.console = _Console(soft_wrap=True, markup=False, emoji=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.shown = ""
        self.task = self.bar.add_task("", total=1.0, left="")

    def print(self, what: Any) -> None:
        """Print a line or a table."""
        with cli.writing_output():
            self.console.print(what)

    def __enter__(self):
        self.print(self.header)
        if self.blocks is not None:
            self.print(f"convolution blocks: {_BLOCKS[blocks_here(self.blocks)]}")
        self.print(f"run folder: {self.path}")
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def hooks(self, should_stop: Callable[[], bool]) -> training.Hooks:
        """The hooks that make a run report here."""
        return training.Hooks(self.progress, self.row, self.warn, should_stop)

    def progress(self, progress: training.Progress) -> None:
        """Move the bar."""
        p = progress
        name, count = self.unit
        done = p.done
        if p.stage in ("train", "compile"):
            done = p.step / self.steps if self.steps else (p.epoch + p.done) / count
        if p.metrics:
            self.shown = " ".join(f"{name} {p.metrics[name]:.3f}" for name in self.metrics)
        self.bar.update(
            self.task,
            completed=done,
            description=f"{name} {min(p.epoch + 1, count)}/{count} {p.stage} {self.shown}",
            left="" if p.seconds_left is None else f"{_duration(p.seconds_left)} left",
        )

    def row(self, row: dict[str, Any]) -> None:
        """Print the line of an epoch or task."""
        raise NotImplementedError

    def result(self, result: dict[str, Any], folder: training.RunFolder) -> None:
        """Print the result of a finished run."""
        raise NotImplementedError

    def warn(self, line: str) -> None:
        """Print a warning on stderr."""
        print(f"warning: {cli.one_line(line)}", file=sys.stderr)


class SilentReport:
    """The report of a process other than the first."""

    def __enter__(self):
        return self

    def __exit__(self, *unused: Any) -> None:
        return None

    def print(self, what: Any) -> None:
        """Nothing."""

    def hooks(self, should_stop: Callable[[], bool]) -> training.Hooks:
        """The hooks that make a run report nothing."""
        return training.Hooks(should_stop=should_stop)


def percent(value: float | None) -> str:
    """A share in percent with two decimals; a dash for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def with_std(value: dict[str, float | None]) -> str:
    """A mean and its standard deviation, in percent."""
    std = "" if value["std"] is None else f" +- {percent(value['std'])}"
    return percent(value["mean"]) + std


def mean(value: float | Sequence[float | None] | None) -> float:
    """The mean over the seeds; NaN if a value is null, which stands for one that is not finite."""
    numbers = [
        math.nan if x is None else x for x in (value if isinstance(value, Sequence) else [value])
    ]
    return sum(numbers) / len(numbers)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
