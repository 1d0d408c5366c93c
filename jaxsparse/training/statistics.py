"""Mean and standard deviation over seeds: one definition for results, tables and figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_NOT_AVERAGED = ("seed", "around_switches")


def mean_and_std(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Mean and standard deviation of a sample.

    ``std = sqrt(sum_i (x_i - mean)^2 / (N - 1))``

    Args:
      values: N numbers, for example one per seed; a NaN makes both results NaN.

    Returns:
      {"mean": float, "std": float}; std is None for a single value.

    Examples:
      >>> mean_and_std([1.0, 3.0])
      {'mean': 2.0, 'std': 1.4142135623730951}

    Source: Bessel's correction.
    """
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def over_seeds(per_seed: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean and standard deviation of each number over the seeds.

    Use it instead of the values stored in a result: those of earlier versions divide by N.

    Args:
      per_seed: nested dicts of numbers, the "seeds" of a result.

    Returns:
      The same dicts with {"mean": .., "std": ..} for each number, see `mean_and_std`; None if the
      number is None for any seed.

    Examples:
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
    """The numbers of one seed: with several seeds each number of a row is a list."""
    return {name: x[seed] if isinstance(x, list) else x for name, x in row.items()}


def without_nan(value: Any) -> Any:
    """`value` (nested dicts and lists) with None for NaN, because JSON has no NaN."""
    if isinstance(value, dict):
        return {name: without_nan(x) for name, x in value.items()}
    if isinstance(value, list):
        return [without_nan(x) for x in value]
    return None if value != value else value
