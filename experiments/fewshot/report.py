"""What a few-shot run says on the console and in its report."""

from pathlib import Path
from typing import Any

from experiments.report import ConsoleReport, Table, mean, percent, plus_minus, spread
from jaxsparse.training import FewShotConfig
from jaxsparse.training.fewshot.config import CHANNELS


def network_name(config: FewShotConfig) -> str:
    """The name of the network with its sizes."""
    if config.network == "conv4":
        return f"Conv4-{config.width}"
    channels = config.channels or CHANNELS[config.network]
    return f"ResNet-12 ({', '.join(map(str, channels))})"


class FewShotReport(ConsoleReport):
    """Reports a few-shot run."""

    def __init__(self, config: FewShotConfig, path: Path):
        self.config = c = config
        header = (
            f"{c.method} on {c.dataset}, {c.ways}-way {c.shots}-shot, {network_name(c)},"
            f" K = {c.inner_steps}, {c.epochs} x {c.steps_per_epoch} meta-steps of"
            f" {c.meta_batch_size} tasks, seeds {c.seed}..{c.seed + c.seeds - 1}"
        )
        shown = ("loss", "accuracy", "sparsity")
        unit, steps = ("epoch", c.epochs), c.epochs * c.steps_per_epoch
        super().__init__(header, path, unit, steps, shown, c.blocks)

    def row(self, row: dict[str, Any]) -> None:
        """Print a line for an epoch."""
        self.print(
            f"epoch {row['epoch']:>3}  loss {mean(row['loss']):.4f}"
            f"  accuracy {mean(row['accuracy']):.4f}"
            f"  val accuracy {mean(row['val_accuracy']):.4f}"
            f"  sparsity {mean(row['sparsity']['total']):.4f}"
        )

    def headline(self, result: dict[str, Any]) -> str:
        """The test accuracy, with its std over the seeds or its interval over the tasks."""
        seeds = result["seeds"]
        if len(seeds) > 1:
            return f"test accuracy {spread([seed['accuracy'] for seed in seeds])}"
        return (
            f"test accuracy {plus_minus(seeds[0]['accuracy'], seeds[0]['interval95'], '%')}"
            f" (95% interval over {result['test_tasks']} tasks)"
        )

    def tables(self, result: dict[str, Any], rows: list[dict[str, Any]]) -> list[Table]:
        """The sparsity of every parameter group."""
        tested = [seed["sparsity"] for seed in result["seeds"]]
        shares = [
            (
                name,
                f"{100 * mean(rows[0]['sparsity'][name]):.1f}%" if rows else "-",
                f"{100 * mean([sparsity[name] for sparsity in tested]):.1f}%",
            )
            for name in tested[0]
        ]
        title = "sparsity: share of parameters that the inner loop does not change"
        return [Table(title, ("parameters", "at the start", "tested"), shares, "parameters")]

    def lines(self, result: dict[str, Any]) -> list[str]:
        """The test accuracy of every seed and over the seeds."""
        lines = []
        for seed in result["seeds"]:
            lines.append(
                f"seed {seed['seed']}: test accuracy"
                f" {plus_minus(seed['accuracy'], seed['interval95'], '%')}"
                f" (95% over {result['test_tasks']} tasks),"
                f" epoch {seed['best_epoch']} of {self.config.epochs}"
            )
            if "ensemble_accuracy" in seed:
                lines.append(
                    f"seed {seed['seed']}: ensemble of {self.config.ensemble}: "
                    + plus_minus(seed["ensemble_accuracy"], seed["ensemble_interval95"], "%")
                )
        if len(result["seeds"]) > 1:
            lines.append(
                f"{len(result['seeds'])} seeds: {percent(result['accuracy'])}%"
                f" +- {percent(result['accuracy_std_over_seeds'])} (std over seeds)"
            )
            if "ensemble_accuracy" in result:
                lines.append(
                    f"{len(result['seeds'])} seeds, ensembles of {self.config.ensemble}:"
                    f" {percent(result['ensemble_accuracy'])}%"
                    f" +- {percent(result['ensemble_accuracy_std_over_seeds'])}"
                )
        return lines
