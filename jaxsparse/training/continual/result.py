"""What a run over a stream comes to: its accuracy matrices, their summaries, the sparsity."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse import metrics
from jaxsparse.training.continual.config import ContinualConfig
from jaxsparse.training.statistics import mean_and_std

SUMMARIES = ("retained_accuracy", "backward_transfer_interference", "learning_accuracy")


def make_result(
    config: ContinualConfig, rows: list[dict[str, Any]], accuracy: np.ndarray
) -> dict[str, Any]:
    """The result of a run.

    Args:
      config: the run's configuration.
      rows: its metrics, from 0, the state before training.
      accuracy: float32 [seeds, T + 1, T]: before training, then after each task; NaN where it was
        not measured.

    Returns:
      A dict of plain numbers and lists, ready for JSON: for each seed RA, BTI, LA and forward
      transfer in [0, 1], the matrix R [T, T] and the final sparsity; means and standard deviations
      over the seeds.

    Example:
      >>> result = make_result(config, folder.rows(), np.asarray(state.accuracy))
    """
    accuracy = np.asarray(accuracy, np.float64)
    per_seed = [
        {
            "seed": config.seed + i,
            **summaries(accuracy[i]),
            "sparsity": _of_seed(rows[-1]["sparsity"], i),
            "accuracy": _without_nan(accuracy[i, 1:]),
            "initial_accuracy": _without_nan(accuracy[i, 0]),
        }
        for i in range(config.seeds)
    ]
    whole: dict[str, Any] = {"part": "validation" if config.validation else "test"}
    for name in (*SUMMARIES, "forward_transfer"):
        whole[name] = mean_and_std([seed[name] for seed in per_seed])
    names = per_seed[0]["sparsity"]
    whole["sparsity"] = {
        name: mean_and_std([seed["sparsity"][name] for seed in per_seed]) for name in names
    }
    return whole | {"seeds": per_seed}


def summaries(accuracy: np.ndarray) -> dict[str, float]:
    """RA, BTI, LA and forward transfer of one seed's [T + 1, T] accuracies."""
    initial, R = jnp.asarray(accuracy[0]), jnp.asarray(accuracy[1:])
    values = {
        "retained_accuracy": metrics.retained_accuracy(R),
        "backward_transfer_interference": metrics.backward_transfer_interference(R),
        "learning_accuracy": metrics.learning_accuracy(R),
        "forward_transfer": metrics.forward_transfer(R, initial),
    }
    return {name: float(value) for name, value in values.items()}


def _of_seed(row: dict[str, Any], seed: int) -> dict[str, float]:
    return {name: x[seed] if isinstance(x, list) else x for name, x in row.items()}


def _without_nan(array: np.ndarray) -> Any:
    """Nested lists with None where nothing was measured: JSON has no NaN."""
    whole = array.round(6).astype(object)
    whole[np.isnan(array)] = None
    return whole.tolist()
