"""The result of a few-shot run: test accuracies with 95% intervals, and sparsity."""

from typing import Any

import numpy as np

from jaxsparse.training.fewshot.config import FewShotConfig
from jaxsparse.training.fewshot.program import TrainState
from jaxsparse.training.statistics import mean_and_std, of_seed


def make_result(
    config: FewShotConfig,
    rows: list[dict[str, Any]],
    state: TrainState,
    metrics: dict[str, np.ndarray],
) -> dict[str, Any]:
    """The result of a run.

    ``interval = 1.96 * std(accuracy over tasks, ddof 1) / sqrt(tasks)``

    Args:
      config: the run's configuration.
      rows: the rows of metrics; row 0 is the state before training.
      state: the final state; its `best` was tested.
      metrics: the test "loss" and "accuracy", each [seeds, tasks].

    Returns:
      A dict of plain numbers and lists, ready for JSON.
    """
    epochs = [int(epoch) for epoch in state.best.epoch]
    measured = accuracies(config.seed, metrics)
    for i, seed in enumerate(measured["seeds"]):
        seed["best_epoch"] = epochs[i]
        seed["best_val_accuracy"] = float(state.best.accuracy[i])
        seed["sparsity"] = of_seed(rows[epochs[i]]["sparsity"], i)
    return measured


def accuracies(first_seed: int, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """Accuracies with their intervals, per seed and over the seeds, of metrics [seeds, tasks]."""
    seeds, tasks = metrics["accuracy"].shape
    per_seed: list[dict[str, Any]] = []
    for i in range(seeds):
        accuracy, interval = _with_interval(metrics["accuracy"][i])
        loss = float(np.mean(metrics["loss"][i], dtype=np.float64))
        per_seed.append(
            {"seed": first_seed + i, "accuracy": accuracy, "interval95": interval, "loss": loss}
        )
    whole = mean_and_std([seed["accuracy"] for seed in per_seed])
    result = {
        "accuracy": whole["mean"],
        "accuracy_std_over_seeds": whole["std"],
        "interval95_over_tasks": per_seed[0]["interval95"] if seeds == 1 else None,
        "test_tasks": tasks,
        "seeds": per_seed,
    }
    if "ensemble_accuracy" in metrics:
        for seed, values in zip(per_seed, metrics["ensemble_accuracy"], strict=True):
            seed["ensemble_accuracy"], seed["ensemble_interval95"] = _with_interval(values)
        whole = mean_and_std([seed["ensemble_accuracy"] for seed in per_seed])
        result["ensemble_accuracy"] = whole["mean"]
        result["ensemble_accuracy_std_over_seeds"] = whole["std"]
    return result


def _with_interval(accuracy: np.ndarray) -> tuple[float, float | None]:
    """Mean over the tasks and its 95% interval; None for one task, which has none."""
    over_tasks: Any = mean_and_std(np.asarray(accuracy, np.float64))
    if over_tasks["std"] is None:
        return over_tasks["mean"], None
    return over_tasks["mean"], 1.96 * over_tasks["std"] / len(accuracy) ** 0.5
