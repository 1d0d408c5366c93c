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
    accuracy = np.asarray(metrics["accuracy"], np.float64)
    tasks = accuracy.shape[1]
    over_tasks = [mean_and_std(one) for one in accuracy]
    epochs = [int(epoch) for epoch in state.best.epoch]
    per_seed: list[dict[str, Any]] = [
        {
            "seed": config.seed + i,
            "accuracy": over_tasks[i]["mean"],
            "interval95": 1.96 * (over_tasks[i]["std"] or 0.0) / tasks**0.5,
            "loss": float(np.mean(metrics["loss"][i], dtype=np.float64)),
            "best_epoch": epochs[i],
            "best_val_accuracy": float(state.best.accuracy[i]),
            "sparsity": of_seed(rows[epochs[i]]["sparsity"], i),
        }
        for i in range(config.seeds)
    ]
    whole = mean_and_std([seed["accuracy"] for seed in per_seed])
    return {
        "accuracy": whole["mean"],
        "accuracy_std_over_seeds": whole["std"],
        "interval95_over_tasks": per_seed[0]["interval95"] if config.seeds == 1 else None,
        "test_tasks": tasks,
        "seeds": per_seed,
    }
