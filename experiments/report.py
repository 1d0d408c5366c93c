"""What a run says: on the console a progress bar and rows; its result as tables and lines."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.table
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from experiments import cli
from jaxsparse import training
from jaxsparse.nn.blocks import Blocks
from jaxsparse.training.environment import blocks_here
from jaxsparse.training.statistics import mean_and_std

_BLOCKS = {
    "native": "native (C++ compiled for this processor)",
    "pallas": "pallas (a kernel for the first block, XLA's operations for the others)",
    "xla": "xla (XLA's operations)",
}


class Table(NamedTuple):
    """A table of a result, for the console and for the page of a run.

    Attributes:
      title: what it shows.
      columns: the names of the columns.
      rows: a word for each column.
      left: the column of names, aligned to the left.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: str = ""

    def rich(self) -> rich.table.Table:
        """The table for the console."""
        table = rich.table.Table(title=self.title)
        for name in self.columns:
            table.add_column(name, justify="left" if name == self.left else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


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
        # Paths are printed unchanged: no markup for their brackets, no wrapping. Jupyter sets
        # FORCE_COLOR for the commands it starts, although their output goes to no terminal.
        self.console = _Console(
            soft_wrap=True, markup=False, emoji=False, force_terminal=sys.stdout.isatty()
        )
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

    def tables(self, result: dict[str, Any], rows: list[dict[str, Any]]) -> list[Table]:
        """The tables of a result; `rows` are the metrics."""
        raise NotImplementedError

    def details(self, result: dict[str, Any]) -> list[Table]:
        """Further tables of a result, for its page only."""
        return []

    def lines(self, result: dict[str, Any]) -> list[str]:
        """What a result says besides its tables."""
        raise NotImplementedError

    def headline(self, result: dict[str, Any]) -> str:
        """A result in one line: mean +- std over the seeds."""
        raise NotImplementedError

    def result(self, result: dict[str, Any], folder: training.RunFolder) -> None:
        """Print the result of a finished run."""
        for table in self.tables(result, folder.rows()):
            self.print(table.rich())
        for line in self.lines(result):
            self.print(line)
        self.print(f"results, figures and report.html: {self.path}")

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


def with_std(value: dict[str, float | None], unit: str = "") -> str:
    """A mean and its standard deviation, in percent; `unit` is put after the mean."""
    return plus_minus(value["mean"], value["std"], unit)


def plus_minus(value: float | None, reach: float | None, unit: str = "") -> str:
    """A share and what it may be off, in percent; `unit` is put after the share."""
    return percent(value) + unit + ("" if reach is None else f" +- {percent(reach)}")


def spread(values: Sequence[float]) -> str:
    """The mean of a measure and its standard deviation (N - 1) over the seeds, in percent."""
    seeds = f" (std over {len(values)} seeds)" if len(values) > 1 else ""
    return f"{with_std(mean_and_std(values), unit='%')}{seeds}"


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
