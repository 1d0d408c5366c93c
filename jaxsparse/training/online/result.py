"""The result of a run on a switching stream: accuracies, detections, accuracy around switches."""

from typing import Any

import jax
import numpy as np

from jaxsparse.training.online.config import CMAML_METHODS, OnlineConfig
from jaxsparse.training.online.program import Trace
from jaxsparse.training.statistics import of_seed, over_seeds, without_nan

# Timesteps before and after a switch in the curve of the accuracy around switches.
BEFORE, AFTER = 5, 20


def make_result(
    config: OnlineConfig, names: tuple[str, ...], rows: list[dict[str, Any]], trace: Trace
) -> dict[str, Any]:
    """The result of a run.

    Args:
      config: the run's configuration.
      names: the names of the datasets.
      rows: the rows of metrics.
      trace: arrays [seeds, T].

    Returns:
      A dict of plain numbers and lists, ready for JSON. Per seed: the online accuracy in total and
      by dataset, in [0, 1]; the counts of `detections`; the accuracy around switches; the final
      sparsity. Over the seeds: means and standard deviations.
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
    """The online accuracy of one seed so far, in total and by dataset.

    Args:
      trace: arrays [t] of the timesteps so far.
      names: the names of the datasets.

    Returns:
      {"accuracy": float, "by_dataset": {name: float}}; NaN for a dataset without any timestep.
    """
    by_dataset = {name: _mean(trace.score[trace.dataset == i]) for i, name in enumerate(names)}
    return {"accuracy": _mean(trace.score), "by_dataset": by_dataset}


def detections(trace: Trace) -> dict[str, float]:
    """How well one seed's switches were detected.

    A switch counts as a hit if it is detected at its timestep or at the next one, unless the next
    one is a switch itself. A detection at any other timestep is a false alarm. The first batch is
    not a switch.

    Args:
      trace: arrays [t] of the timesteps so far.

    Returns:
      The counts "switches", "hits" and "false_alarms", and the "mean_delay" of the hits in
      timesteps, NaN without hits.
    """
    switches = _switches(trace)
    # One more entry each, because `switches + 1` may be one past the end.
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
    """The mean accuracy at each offset from a switch, over the switches of one seed.

    Offset d >= 0 averages over the tasks that last more than d timesteps. Offset d < 0 averages
    over the previous tasks that had already started. Timestep 0 is left out, because its score is
    always 0.

    Args:
      trace: arrays [T].

    Returns:
      {"offset": [-5, ..., 20], "accuracy": the means, NaN without such timesteps}.
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
