"""What a person sees of a run: the progress bar, the rows, the result."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from jaxsparse import training


class ConsoleReport:
    """Reports a run on the terminal; lines instead of a bar where there is none."""

    def __init__(self, config: training.FewShotConfig, path: Path):
        self.config, self.path = config, path
        self.console = Console(soft_wrap=True)
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

    def __enter__(self) -> "ConsoleReport":
        c = self.config
        self.console.print(
            f"{c.method} on {c.dataset}, {c.ways}-way {c.shots}-shot, Conv4-{c.width},"
            f" K = {c.inner_steps}, {c.epochs} x {c.steps_per_epoch} meta-steps of"
            f" {c.meta_batch_size} tasks, seeds {c.seed}..{c.seed + c.seeds - 1}"
        )
        self.console.print(f"run folder: {self.path}")
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def hooks(self, should_stop: Callable[[], bool]) -> training.Hooks:
        """The hooks that report to this console."""
        return training.Hooks(self.progress, self.row, self.warn, should_stop)

    def progress(self, progress: training.Progress) -> None:
        """Move the bar."""
        c, p = self.config, progress
        steps = c.epochs * c.steps_per_epoch
        done = p.step / steps if p.stage in ("train", "compile") else p.done
        if p.metrics:
            names = ("loss", "accuracy", "sparsity")
            self.shown = " ".join(f"{name} {p.metrics[name]:.3f}" for name in names)
        self.bar.update(
            self.task,
            completed=done,
            description=f"epoch {min(p.epoch + 1, c.epochs)}/{c.epochs} {p.stage} {self.shown}",
            left="" if p.seconds_left is None else f"{_duration(p.seconds_left)} left",
        )

    def row(self, row: dict[str, Any]) -> None:
        """Print an epoch's line."""
        self.console.print(
            f"epoch {row['epoch']:>3}  loss {_mean(row['loss']):.4f}"
            f"  accuracy {_mean(row['accuracy']):.4f}"
            f"  val accuracy {_mean(row['val_accuracy']):.4f}"
            f"  sparsity {_mean(row['sparsity']['total']):.4f}"
        )

    def warn(self, line: str) -> None:
        """Print a warning on stderr."""
        print(f"warning: {line}", file=sys.stderr)

    def result(self, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Print the test accuracy and the sparsity of every parameter group."""
        self.console.print(self._sparsity_table(result, rows))
        for seed in result["seeds"]:
            self.console.print(
                f"seed {seed['seed']}: test accuracy {100 * seed['accuracy']:.2f}%"
                f" +- {100 * seed['interval95']:.2f} (95% over {result['test_tasks']} tasks),"
                f" epoch {seed['best_epoch']} of {self.config.epochs}"
            )
        if len(result["seeds"]) > 1:
            self.console.print(
                f"{len(result['seeds'])} seeds: {100 * result['accuracy']:.2f}%"
                f" +- {100 * result['accuracy_std_over_seeds']:.2f} (std over seeds)"
            )
        self.console.print(f"results and figures: {self.path}")

    def _sparsity_table(self, result, rows):
        table = Table(title="sparsity: share of parameters the inner loop leaves alone")
        table.add_column("parameters")
        table.add_column("at the start", justify="right")
        table.add_column("tested", justify="right")
        tested = [seed["sparsity"] for seed in result["seeds"]]
        for name in tested[0]:
            table.add_row(
                name,
                f"{100 * _mean(rows[0]['sparsity'][name]):.1f}%",
                f"{100 * _mean([sparsity[name] for sparsity in tested]):.1f}%",
            )
        return table


def _mean(value: float | list[float]) -> float:
    return sum(value) / len(value) if isinstance(value, list) else value


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
