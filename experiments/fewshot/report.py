"""The console output of a few-shot run."""

from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.report import ConsoleReport, mean, percent
from jaxsparse.training import FewShotConfig, RunFolder
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

    def result(self, result: dict[str, Any], folder: RunFolder) -> None:
        """Print the test accuracy and the sparsity of every parameter group."""
        self.print(self._sparsity_table(result, folder.rows()))
        for seed in result["seeds"]:
            self.print(
                f"seed {seed['seed']}: test accuracy {percent(seed['accuracy'])}%"
                f" +- {percent(seed['interval95'])} (95% over {result['test_tasks']} tasks),"
                f" epoch {seed['best_epoch']} of {self.config.epochs}"
            )
            if "ensemble_accuracy" in seed:
                self.print(
                    f"seed {seed['seed']}: ensemble of {self.config.ensemble}:"
                    f" {percent(seed['ensemble_accuracy'])}%"
                    f" +- {percent(seed['ensemble_interval95'])}"
                )
        if len(result["seeds"]) > 1:
            self.print(
                f"{len(result['seeds'])} seeds: {percent(result['accuracy'])}%"
                f" +- {percent(result['accuracy_std_over_seeds'])} (std over seeds)"
            )
            if "ensemble_accuracy" in result:
                self.print(
                    f"{len(result['seeds'])} seeds, ensembles of {self.config.ensemble}:"
                    f" {percent(result['ensemble_accuracy'])}%"
                    f" +- {percent(result['ensemble_accuracy_std_over_seeds'])}"
                )
        self.print(f"results and figures: {self.path}")

    def _sparsity_table(self, result, rows):
        table = Table(title="sparsity: share of parameters that the inner loop does not change")
        table.add_column("parameters")
        table.add_column("at the start", justify="right")
        table.add_column("tested", justify="right")
        tested = [seed["sparsity"] for seed in result["seeds"]]
        for name in tested[0]:
            table.add_row(
                name,
                f"{100 * mean(rows[0]['sparsity'][name]):.1f}%" if rows else "-",
                f"{100 * mean([sparsity[name] for sparsity in tested]):.1f}%",
            )
        return table
