"""The console output of a run over a stream of tasks."""

from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.report import ConsoleReport, mean, percent, with_std
from jaxsparse.training import RunFolder
from jaxsparse.training.continual import ContinualConfig


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
        """Print a line for a task: accuracy on it and on all tasks so far, sparsity."""
        done, accuracy = row["task"], row["test_accuracy"]
        if not done:
            return
        seen = [mean(accuracy[name]) for j in range(done) if (name := f"task {j}") in accuracy]
        line = f"task {done:>3}  loss {mean(row['loss']):.4f}"
        line += f"  accuracy {mean(accuracy[f'task {done - 1}']):.4f}"
        if len(seen) == done:
            line += f"  on all so far {mean(seen):.4f}"
        if row["sparsity"]:
            line += f"  sparsity {mean(row['sparsity']['total']):.4f}"
        self.print(line)

    def result(self, result: dict[str, Any], folder: RunFolder) -> None:
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
        """Print the RA of each point of a scan."""
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
