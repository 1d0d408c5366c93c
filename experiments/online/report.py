"""The console output of a run on a switching stream."""

from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.report import ConsoleReport, mean, percent, with_std
from jaxsparse.training import RunFolder
from jaxsparse.training.online import OnlineConfig
from jaxsparse.training.online.result import over_seeds


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
        """Print a line for an interval: accuracies, detections so far, sparsity."""
        if "epoch" in row:
            self.print(
                f"pretraining, epoch {row['epoch']:>3}  loss {row['loss']:.4f}"
                f"  accuracy {row['accuracy']:.4f}  val accuracy {row['val_accuracy']:.4f}"
            )
            return
        if not row["interval"]:
            return
        line = f"timestep {row['step']:>6}  accuracy {mean(row['interval_accuracy']):.4f}"
        line += f"  so far {mean(row['accuracy']):.4f}"
        line += "".join(f"  {name} {mean(x):.4f}" for name, x in row["by_dataset"].items())
        if "hits" in row:
            hits, switches, alarms = (
                mean(row[name]) for name in ("hits", "switches", "false_alarms")
            )
            line += f"  detected {hits:g}/{switches:g}, false {alarms:g}"
        if row["sparsity"]:
            line += f"  sparsity {mean(row['sparsity']['total']):.4f}"
        self.print(line)

    def result(self, result: dict[str, Any], folder: RunFolder) -> None:
        """Print the online accuracies and detections of every seed, their means, the sparsity."""
        result = with_sample_std(result)
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


def with_sample_std(result: dict[str, Any]) -> dict[str, Any]:
    """A result with sample standard deviations (N - 1); older runs stored those with N."""
    return {**result, **over_seeds(result["seeds"])}


def _detected(seed: dict[str, Any]) -> tuple[str, ...]:
    found = seed.get("detections")
    if found is None:
        return ("-",) * 3
    delay = "-" if found["mean_delay"] is None else f"{found['mean_delay']:.2f}"
    return f"{found['hits']}/{found['switches']}", str(found["false_alarms"]), delay
