"""The spread over seeds: one definition for results, tables and figures."""

from collections.abc import Sequence

import numpy as np


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
