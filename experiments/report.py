"""What a person sees of a run: the progress bar, the rows, the result."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from experiments import cli
from jaxsparse import training
from jaxsparse.nn.blocks import Blocks
from jaxsparse.training.continual import ContinualConfig
from jaxsparse.training.environment import blocks_here
from jaxsparse.training.online import OnlineConfig
from jaxsparse.training.online.result import over_seeds

_BLOCKS = {
    "native": "native (C++ compiled for this processor)",
    "xla": "xla (XLA's operations)",
}


class _Console(Console):
    """Leaves it to the command what happens where nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class ConsoleReport:
    """Reports a run on the terminal; lines instead of a bar where there is none.

    Args:
      header: a line on what is run.
      path: the run's folder.
      unit: what the run is counted in, "epoch" or "task", and how many there are.
      steps: of the whole run; None: what is done of each unit tells how far it is.
      metrics: those shown beside the bar.
      blocks: the setting of what computes Conv4's blocks; None: the network has none.
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
        # Paths are printed as they are: neither their brackets nor their length count.
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
        """Print a line or a table, at once."""
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
        """The hooks that report to this console."""
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

    def warn(self, line: str) -> None:
        """Print a warning on stderr."""
        print(f"warning: {cli.one_line(line)}", file=sys.stderr)


class FewShotReport(ConsoleReport):
    """Reports a few-shot run."""

    def __init__(self, config: training.FewShotConfig, path: Path):
        self.config = c = config
        header = (
            f"{c.method} on {c.dataset}, {c.ways}-way {c.shots}-shot, Conv4-{c.width},"
            f" K = {c.inner_steps}, {c.epochs} x {c.steps_per_epoch} meta-steps of"
            f" {c.meta_batch_size} tasks, seeds {c.seed}..{c.seed + c.seeds - 1}"
        )
        shown = ("loss", "accuracy", "sparsity")
        unit, steps = ("epoch", c.epochs), c.epochs * c.steps_per_epoch
        super().__init__(header, path, unit, steps, shown, c.blocks)

    def row(self, row: dict[str, Any]) -> None:
        """Print an epoch's line."""
        self.print(
            f"epoch {row['epoch']:>3}  loss {_mean(row['loss']):.4f}"
            f"  accuracy {_mean(row['accuracy']):.4f}"
            f"  val accuracy {_mean(row['val_accuracy']):.4f}"
            f"  sparsity {_mean(row['sparsity']['total']):.4f}"
        )

    def result(self, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Print the test accuracy and the sparsity of every parameter group."""
        self.print(self._sparsity_table(result, rows))
        for seed in result["seeds"]:
            self.print(
                f"seed {seed['seed']}: test accuracy {percent(seed['accuracy'])}%"
                f" +- {percent(seed['interval95'])} (95% over {result['test_tasks']} tasks),"
                f" epoch {seed['best_epoch']} of {self.config.epochs}"
            )
        if len(result["seeds"]) > 1:
            self.print(
                f"{len(result['seeds'])} seeds: {percent(result['accuracy'])}%"
                f" +- {percent(result['accuracy_std_over_seeds'])} (std over seeds)"
            )
        self.print(f"results and figures: {self.path}")

    def _sparsity_table(self, result, rows):
        table = Table(title="sparsity: share of parameters the inner loop leaves alone")
        table.add_column("parameters")
        table.add_column("at the start", justify="right")
        table.add_column("tested", justify="right")
        tested = [seed["sparsity"] for seed in result["seeds"]]
        for name in tested[0]:
            table.add_row(
                name,
                f"{100 * _mean(rows[0]['sparsity'][name]):.1f}%" if rows else "-",
                f"{100 * _mean([sparsity[name] for sparsity in tested]):.1f}%",
            )
        return table


class StreamReport(ConsoleReport):
    """Reports a run over a stream of tasks."""

    def __init__(self, config: ContinualConfig, path: Path):
        self.config = c = config
        samples = "all" if c.samples_per_task is None else str(c.samples_per_task)
        header = (
            f"{c.method} on {c.stream} of {c.data}, {c.tasks} tasks of {samples} images,"
            f" batches of {c.batch_size}, {c.glances} glances, memory of {c.memories},"
            f" seeds {c.seed}..{c.seed + c.seeds - 1}"
        )
        super().__init__(header, path, ("task", c.tasks), None, ("loss", "accuracy"))

    def row(self, row: dict[str, Any]) -> None:
        """Print the line of a task: accuracies on it, on all tasks so far, and the sparsity."""
        done, accuracy = row["task"], row["test_accuracy"]
        if not done:
            return
        seen = [_mean(accuracy[name]) for j in range(done) if (name := f"task {j}") in accuracy]
        line = f"task {done:>3}  loss {_mean(row['loss']):.4f}"
        line += f"  accuracy {_mean(accuracy[f'task {done - 1}']):.4f}"
        if len(seen) == done:
            line += f"  on all so far {_mean(seen):.4f}"
        if row["sparsity"]:
            line += f"  sparsity {_mean(row['sparsity']['total']):.4f}"
        self.print(line)

    def result(self, result: dict[str, Any]) -> None:
        """Print RA, BTI and LA of every seed, their mean, and the sparsity of every tensor."""
        names = ("retained_accuracy", "backward_transfer_interference", "learning_accuracy")
        table = Table(title=f"{self.config.method} on {self.config.stream}, in %")
        for name in ("seed", "RA", "BTI", "LA", "forward", "sparsity"):
            table.add_column(name, justify="right")
        for seed in result["seeds"]:
            values = [seed[name] for name in (*names, "forward_transfer")]
            values.append(seed["sparsity"].get("total"))
            table.add_row(str(seed["seed"]), *map(percent, values))
        if len(result["seeds"]) > 1:
            means = [result[name] for name in (*names, "forward_transfer")]
            means.append(result["sparsity"].get("total"))
            table.add_row("mean", *(percent(m and m["mean"]) for m in means))
            table.add_row("std", *(percent(m and m["std"]) for m in means))
        self.print(table)
        for name, value in result["sparsity"].items():
            self.print(f"sparsity of {name}: {with_std(value)}%")
        self.print(f"results and figures: {self.path}")

    def scan(self, points: list[dict[str, Any]], best: dict[str, Any]) -> None:
        """Print what each point of a scan retained on held-out images."""
        table = Table(title="scan on held-out training images")
        for name in ("glances", "inner_lr", "mask_lr", "theta_lr"):
            table.add_column(name, justify="right")
        table.add_column("RA", justify="right")
        for point in points:
            table.add_row(
                str(point["glances"]),
                *(f"{point[name]:g}" for name in ("inner_lr", "mask_lr", "theta_lr")),
                with_std(point["retained_accuracy"]) + (" <-" if point is best else ""),
            )
        self.print(table)


class OnlineReport(ConsoleReport):
    """Reports a run on a switching stream."""

    def __init__(self, config: OnlineConfig, path: Path):
        self.config = c = config
        header = (
            f"{c.method} on {c.data} images, p = {c.p:g}, {c.timesteps} timesteps of"
            f" {c.ways} x {c.shots} images, Conv4-{c.width}, seeds {c.seed}..{c.seed + c.seeds - 1}"
        )
        unit, shown = ("interval", c.intervals), ("accuracy",)
        super().__init__(header, path, unit, c.timesteps, shown, c.blocks)

    def row(self, row: dict[str, Any]) -> None:
        """Print the line of an interval: accuracies, detections so far, sparsity."""
        if "epoch" in row:
            self.print(
                f"pretraining, epoch {row['epoch']:>3}  loss {row['loss']:.4f}"
                f"  accuracy {row['accuracy']:.4f}  val accuracy {row['val_accuracy']:.4f}"
            )
            return
        if not row["interval"]:
            return
        line = f"timestep {row['step']:>6}  accuracy {_mean(row['interval_accuracy']):.4f}"
        line += f"  so far {_mean(row['accuracy']):.4f}"
        line += "".join(f"  {name} {_mean(x):.4f}" for name, x in row["by_dataset"].items())
        if "hits" in row:
            hits, switches, alarms = (
                _mean(row[name]) for name in ("hits", "switches", "false_alarms")
            )
            line += f"  detected {hits:g}/{switches:g}, false {alarms:g}"
        if row["sparsity"]:
            line += f"  sparsity {_mean(row['sparsity']['total']):.4f}"
        self.print(line)

    def result(self, result: dict[str, Any]) -> None:
        """Print every seed's online accuracies and detections, their means, and the sparsity."""
        # Older runs have stored another standard deviation.
        result = {**result, **over_seeds(result["seeds"])}
        table = Table(title=f"{self.config.method} at p = {self.config.p:g}, accuracies in %")
        names = list(result["by_dataset"])
        for name in ("seed", "total", *names, "detected", "false", "delay"):
            table.add_column(name, justify="right")
        for seed in result["seeds"]:
            values = [seed["accuracy"], *seed["by_dataset"].values()]
            table.add_row(str(seed["seed"]), *map(percent, values), *_detected(seed))
        if len(result["seeds"]) > 1:
            means = [result["accuracy"], *result["by_dataset"].values()]
            for part in ("mean", "std"):
                table.add_row(part, *(percent(m and m[part]) for m in means))
        self.print(table)
        for name, value in result["sparsity"].items():
            self.print(f"sparsity of {name}: {with_std(value)}%")
        self.print(f"results and figures: {self.path}")


def _detected(seed: dict[str, Any]) -> tuple[str, ...]:
    found = seed.get("detections")
    if found is None:
        return ("-",) * 3
    delay = "-" if found["mean_delay"] is None else f"{found['mean_delay']:.2f}"
    return f"{found['hits']}/{found['switches']}", str(found["false_alarms"]), delay


def percent(value: float | None) -> str:
    """A share in percent with two decimals; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"


def with_std(value: dict[str, float | None]) -> str:
    """A mean and its standard deviation, in percent."""
    std = "" if value["std"] is None else f" +- {percent(value['std'])}"
    return percent(value["mean"]) + std


def _mean(value: float | Sequence[float | None] | None) -> float:
    """The mean over the seeds; NaN where a value was not finite, which files hold as null."""
    numbers = [
        math.nan if x is None else x for x in (value if isinstance(value, Sequence) else [value])
    ]
    return sum(numbers) / len(numbers)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
