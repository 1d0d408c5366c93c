"""The result of a continual-learning run: accuracy matrices, their summaries, sparsity."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse import metrics
from jaxsparse.training.continual.config import ContinualConfig
from jaxsparse.training.statistics import of_seed, over_seeds, without_nan

SUMMARIES = ("retained_accuracy", "backward_transfer_interference", "learning_accuracy")


def make_result(
    config: ContinualConfig, rows: list[dict[str, Any]], accuracy: np.ndarray
) -> dict[str, Any]:
    """The result of a run.

    Args:
      config: the run's configuration.
      rows: the rows of metrics; row 0 is the state before training.
      accuracy: float32 [seeds, T + 1, T]: before training, then after each task; NaN if not
        measured.

    Returns:
      A dict of plain numbers and lists, ready for JSON. Per seed: RA, BTI, LA and forward transfer
      in [0, 1], the matrix R [T, T] and the final sparsity. Over the seeds: means and standard
      deviations.
    """
    accuracy = np.asarray(accuracy, np.float64)
    per_seed = [
        {
            "seed": config.seed + i,
            **summaries(accuracy[i]),
            "sparsity": of_seed(rows[-1]["sparsity"], i),
            "accuracy": without_nan(accuracy[i, 1:].round(6).tolist()),
            "initial_accuracy": without_nan(accuracy[i, 0].round(6).tolist()),
        }
        for i in range(config.seeds)
    ]
    averaged = (*SUMMARIES, "forward_transfer", "sparsity")
    whole = over_seeds([{name: seed[name] for name in averaged} for seed in per_seed])
    part = "validation" if config.validation else "test"
    return {"part": part, **whole, "seeds": per_seed}


def summaries(accuracy: np.ndarray) -> dict[str, float]:
    """RA, BTI, LA and forward transfer of one seed, from its accuracies [T + 1, T]."""
    initial, R = jnp.asarray(accuracy[0]), jnp.asarray(accuracy[1:])
    values = {
        "retained_accuracy": metrics.retained_accuracy(R),
        "backward_transfer_interference": metrics.backward_transfer_interference(R),
        "learning_accuracy": metrics.learning_accuracy(R),
        "forward_transfer": metrics.forward_transfer(R, initial),
    }
    return {name: float(value) for name, value in values.items()}
