"""What a run over a stream of tasks says on the console and in its report."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.report import ConsoleReport, Table, mean, percent, spread, with_std
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

    def headline(self, result: dict[str, Any]) -> str:
        """RA, the mean accuracy on all tasks after the last one, and the sparsity."""
        seeds = result["seeds"]
        line = f"retained accuracy {spread([seed['retained_accuracy'] for seed in seeds])}"
        if "total" in result["sparsity"]:
            line += f", sparsity {spread([seed['sparsity']['total'] for seed in seeds])}"
        return line

    def tables(self, result: dict[str, Any], rows: list[dict[str, Any]]) -> list[Table]:
        """RA, BTI and LA of every seed, and their mean."""
        names = ("retained_accuracy", "backward_transfer_interference", "learning_accuracy")
        shares = []
        for seed in result["seeds"]:
            values = [seed[name] for name in (*names, "forward_transfer")]
            values.append(seed["sparsity"].get("total"))
            shares.append((str(seed["seed"]), *map(percent, values)))
        if len(result["seeds"]) > 1:
            means = [result[name] for name in (*names, "forward_transfer")]
            means.append(result["sparsity"].get("total"))
            for part in ("mean", "std"):
                shares.append((part, *(percent(m and m[part]) for m in means)))
        title = f"{self.config.method} on {self.config.stream}, in %"
        return [Table(title, ("seed", "RA", "BTI", "LA", "forward", "sparsity"), shares)]

    def details(self, result: dict[str, Any]) -> list[Table]:
        """The accuracy matrix: after each task, the accuracy on each task, mean over the seeds."""
        R = np.array([seed["accuracy"] for seed in result["seeds"]], float)
        tasks = [str(i + 1) for i in range(R.shape[1])]
        rows = [
            (task, *(percent(None if np.isnan(x) else x) for x in row))
            for task, row in zip(tasks, R.mean(0), strict=True)
        ]
        title = f"accuracy matrix, {result.get('part', 'test')} images, in %"
        return [Table(title, ("after task", *(f"on {task}" for task in tasks)), rows)]

    def lines(self, result: dict[str, Any]) -> list[str]:
        """The sparsity of every tensor."""
        return [f"sparsity of {name}: {with_std(x)}%" for name, x in result["sparsity"].items()]

    def scan(self, points: list[dict[str, Any]], best: dict[str, Any]) -> None:
        """Print the RA of each point of a scan."""
        names = ("glances", "inner_lr", "mask_lr", "theta_lr")
        rows = [
            (
                *(f"{point[name]:g}" for name in names),
                with_std(point["retained_accuracy"]) + (" <-" if point is best else ""),
            )
            for point in points
        ]
        self.print(Table("scan on held-out training images", (*names, "RA"), rows).rich())
