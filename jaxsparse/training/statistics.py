"""The summary over seeds: one definition for results, tables and figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_NOT_AVERAGED = ("seed", "around_switches")


def mean_and_std(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Mean and standard deviation of a sample.

    ``std = sqrt(sum_i (x_i - mean)^2 / (N - 1))``

    Args:
      values: N numbers, one for each seed say; NaN makes both NaN.

    Returns:
      {"mean": float, "std": float, None where there is one value}.

    Example:
      >>> mean_and_std([1.0, 3.0])
      {'mean': 2.0, 'std': 1.4142135623730951}

    Source: Bessel's correction.
    """
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def over_seeds(per_seed: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations of what a result holds for each seed.

    To be read in place of those a result was stored with, which before were of the population.

    Args:
      per_seed: nested dicts of numbers, the "seeds" of a result.

    Returns:
      Of each number {"mean": .., "std": ..}, as `mean_and_std`; None where a seed has none.

    Example:
      >>> over_seeds([{"accuracy": 0.5}, {"accuracy": 0.7}])["accuracy"]["mean"]
      0.6
    """
    whole: dict[str, Any] = {}
    for name in (name for name in per_seed[0] if name not in _NOT_AVERAGED):
        values = [seed[name] for seed in per_seed]
        if isinstance(values[0], dict):
            whole[name] = over_seeds(values)
        else:
            whole[name] = None if None in values else mean_and_std(values)
    return whole


def of_seed(row: dict[str, Any], seed: int) -> dict[str, Any]:
    """One seed's numbers: those of several seeds are lists, that of one seed is none."""
    return {name: x[seed] if isinstance(x, list) else x for name, x in row.items()}


def without_nan(value: Any) -> Any:
    """`value`, nested dicts and lists, with None for NaN: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: without_nan(x) for name, x in value.items()}
    if isinstance(value, list):
        return [without_nan(x) for x in value]
    return None if value != value else value
