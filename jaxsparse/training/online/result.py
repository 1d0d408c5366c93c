"""What a run on a switching stream comes to: accuracies, detections, accuracy around switches."""

from typing import Any

import jax
import numpy as np

from jaxsparse.training.online.config import CMAML_METHODS, OnlineConfig
from jaxsparse.training.online.program import Trace
from jaxsparse.training.statistics import of_seed, over_seeds, without_nan

# Timesteps around a switch that its curve shows.
BEFORE, AFTER = 5, 20


def make_result(
    config: OnlineConfig, names: tuple[str, ...], rows: list[dict[str, Any]], trace: Trace
) -> dict[str, Any]:
    """The result of a run.

    Args:
      config: the run's configuration.
      names: of the data sets.
      rows: the run's metrics.
      trace: arrays [seeds, T].

    Returns:
      A dict of plain numbers and lists, ready for JSON: for each seed the online accuracy in total
      and by data set, in [0, 1], what `detections` counts, the accuracy around switches and the
      final sparsity; means and standard deviations over the seeds.

    Example:
      >>> result = make_result(config, data.names, folder.rows(), state.trace)
    """
    per_seed = []
    for i in range(config.seeds):
        own = jax.tree.map(lambda x, i=i: np.asarray(x)[i], trace)
        seed = {"seed": config.seed + i, **accuracies(own, names)}
        if config.method in CMAML_METHODS:
            seed["detections"] = detections(own)
        seed["around_switches"] = around_switches(own)
        seed["sparsity"] = of_seed(rows[-1]["sparsity"], i)
        per_seed.append(without_nan(seed))
    return {**over_seeds(per_seed), "seeds": per_seed}


def accuracies(trace: Trace, names: tuple[str, ...]) -> dict[str, Any]:
    """The online accuracy of one seed: the mean score so far, of all timesteps and by data set.

    Args:
      trace: arrays [t] of the timesteps so far.
      names: of the data sets.

    Returns:
      {"accuracy": float, "by_dataset": {name: float, NaN where none of it was seen}}.

    Example:
      >>> accuracies(trace, ("omniglot", "mnist", "fashion_mnist"))["accuracy"]
    """
    by_dataset = {name: _mean(trace.score[trace.dataset == i]) for i, name in enumerate(names)}
    return {"accuracy": _mean(trace.score), "by_dataset": by_dataset}


def detections(trace: Trace) -> dict[str, float]:
    """How well one seed's switches were detected.

    A switch is hit by a detection at it or one timestep later, unless that is a switch itself. A
    detection within neither is a false alarm. The batch at t = 0 is no switch: there was no task
    before.

    Args:
      trace: arrays [t] of the timesteps so far.

    Returns:
      Counts of "switches", "hits" and "false_alarms", and the "mean_delay" of the hits in
      timesteps, NaN without any.

    Example:
      >>> detections(trace)["hits"]
    """
    switches = _switches(trace)
    # One more entry each, for what comes one timestep after the last.
    detected = np.append(trace.detected, False)
    switched = np.zeros_like(detected)
    switched[switches] = True
    at_once = detected[switches]
    late = detected[switches + 1] & ~switched[switches + 1] & ~at_once
    near = switched | np.roll(switched, 1)
    hits = int(at_once.sum() + late.sum())
    return {
        "switches": len(switches),
        "hits": hits,
        "false_alarms": int((detected & ~near).sum()),
        "mean_delay": float(late.sum() / hits) if hits else float("nan"),
    }


def around_switches(trace: Trace) -> dict[str, list[float]]:
    """The mean score before and after a switch, each of the task at hand.

    At offset d >= 0 over the tasks that last longer than d timesteps, at d < 0 over the tasks
    before that had begun; from t = 1 on, as the score at 0 is no network's.

    Args:
      trace: arrays [T].

    Returns:
      {"offset": [-5, ..., 20], "accuracy": the means, NaN where there is no such timestep}.

    Example:
      >>> around_switches(trace)["offset"][0]
      -5
    """
    switches = _switches(trace)
    begins, ends = np.append(1, switches)[:-1], np.append(switches, len(trace.score))[1:]
    offsets = range(-BEFORE, AFTER + 1)
    means = []
    for offset in offsets:
        at = switches + offset
        within = (at < ends) if offset >= 0 else (at >= begins)
        means.append(_mean(trace.score[at[within]]))
    return {"offset": list(offsets), "accuracy": means}


def _switches(trace):
    return np.flatnonzero(trace.switched[1:]) + 1


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else float("nan")
