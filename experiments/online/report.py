"""What a run on a switching stream says on the console and in its report."""

from pathlib import Path
from typing import Any

from experiments.report import ConsoleReport, Table, mean, percent, spread, with_std
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

    def headline(self, result: dict[str, Any]) -> str:
        """The online accuracy over the whole stream."""
        return f"online accuracy {spread([seed['accuracy'] for seed in result['seeds']])}"

    def tables(self, result: dict[str, Any], rows: list[dict[str, Any]]) -> list[Table]:
        """The online accuracies, in total and by dataset, and detections of every seed."""
        result = with_sample_std(result)
        names = list(result["by_dataset"])
        shares = []
        for seed in result["seeds"]:
            values = [seed["accuracy"], *seed["by_dataset"].values()]
            shares.append((str(seed["seed"]), *map(percent, values), *_detected(seed)))
        if len(result["seeds"]) > 1:
            means = [result["accuracy"], *result["by_dataset"].values()]
            for part in ("mean", "std"):
                shares.append((part, *(percent(m and m[part]) for m in means), "", "", ""))
        title = f"{self.config.method} at p = {self.config.p:g}, accuracies in %"
        return [Table(title, ("seed", "total", *names, "detected", "false", "delay"), shares)]

    def lines(self, result: dict[str, Any]) -> list[str]:
        """The sparsity of every tensor."""
        sparsity = with_sample_std(result)["sparsity"]
        return [f"sparsity of {name}: {with_std(x)}%" for name, x in sparsity.items()]


def with_sample_std(result: dict[str, Any]) -> dict[str, Any]:
    """A result with sample standard deviations (N - 1); older runs stored those with N."""
    return {**result, **over_seeds(result["seeds"])}


def _detected(seed: dict[str, Any]) -> tuple[str, ...]:
    found = seed.get("detections")
    if found is None:
        return ("-",) * 3
    delay = "-" if found["mean_delay"] is None else f"{found['mean_delay']:.2f}"
    return f"{found['hits']}/{found['switches']}", str(found["false_alarms"]), delay
