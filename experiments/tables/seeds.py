"""The values of each seed of a result."""

from typing import Any


def of_seeds(result: dict[str, Any], measure: str = "accuracy") -> list[float]:
    """A measure of each seed."""
    return [seed[measure] for seed in result["seeds"]]


def sparsity(result: dict[str, Any], name: str = "total") -> list[float]:
    """The sparsity of each seed: of a tensor, or of all of them."""
    return [seed["sparsity"][name] for seed in result["seeds"]]
