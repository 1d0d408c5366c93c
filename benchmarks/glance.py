"""What is timed online: glances of (sparse-)La-MAML at one batch of a stream of images."""

import dataclasses
import itertools
import math
from typing import Any, Literal

import numpy as np

Method = Literal["sparse-lamaml", "lamaml"]


@dataclasses.dataclass(frozen=True)
class GlanceCase:
    """Glances at one batch with a ReLU network: per image an inner step and a meta-gradient.

    The rates and the bound on the norms are those of the rotated digits.
    """

    method: Method = "sparse-lamaml"
    hidden: tuple[int, ...] = (100, 100)
    inputs: int = 784
    ways: int = 10
    inner_steps: int = 10
    """K, the images of the batch, one per inner step"""
    meta_rows: int = 20
    """rows of the meta-loss: replayed ones and the batch"""
    glances: int = 5
    """passes over the batch in a row, each in another order and with other replayed rows"""
    inner_lr: float = 0.15
    clip_norm: float = 2.0

    def __post_init__(self) -> None:
        if self.method not in ("sparse-lamaml", "lamaml"):
            raise ValueError(f"method must be sparse-lamaml or lamaml, got {self.method!r}")
        sizes = {"hidden": min(self.hidden, default=1), "inputs": self.inputs}
        sizes |= {"inner_steps": self.inner_steps, "glances": self.glances}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.ways < 2:
            raise ValueError(f"ways must be at least 2, got {self.ways}")
        if self.meta_rows < self.inner_steps:
            raise ValueError(
                f"meta_rows must be at least inner_steps = {self.inner_steps}, got {self.meta_rows}"
            )

    @property
    def name(self) -> str:
        sizes = "-".join(map(str, self.layer_sizes))
        plural = "s" if self.glances > 1 else ""
        rows = f"K = {self.inner_steps}, {self.meta_rows} meta rows"
        return f"{self.glances} glance{plural} of {self.method}, {sizes}, {rows}"

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        return (self.inputs, *self.hidden, self.ways)

    @property
    def replayed(self) -> int:
        """Rows that come from memory."""
        return self.meta_rows - self.inner_steps

    @property
    def mask_lr(self) -> float:
        """The rate that the mask parameters are trained with."""
        return 1.7 if self.method == "sparse-lamaml" else 0.3

    @property
    def tasks_taken(self) -> int:
        """Glances: what the rate of the step is counted in."""
        return self.glances

    @property
    def inner_steps_taken(self) -> int:
        """Inner steps of all glances: what the time is divided by."""
        return self.glances * self.inner_steps

    def flops(self) -> float:
        """Floating-point operations of the matrix products of all glances.

        Forward, kernel gradient and, but for the first layer, input gradient: each 2 x in x out
        for each row of each inner step and of each meta-loss.
        """
        pairs = list(itertools.pairwise(self.layer_sizes))
        per_row = sum(2 * n * m * (2 if i == 0 else 3) for i, (n, m) in enumerate(pairs))
        return float(per_row * self.inner_steps_taken * (1 + self.meta_rows))


def draw(case: GlanceCase, seed: int = 0) -> dict[str, Any]:
    """Parameters, mask, batch, replayed rows and orders of a case: where every contestant starts.

    The images are sparse and noisy copies of one prototype per class, as bright as digits are.

    Returns:
      "params" and "mask" (flat by name), "batch" (images [K, inputs], labels [K]), "replay" the
      same with a leading axis of glances, "orders" [glances, K] of the batch's rows.
    """
    random = np.random.default_rng(seed)
    params: dict[str, np.ndarray] = {}
    for name, (n, m) in zip(_layers(case), itertools.pairwise(case.layer_sizes), strict=True):
        params[f"{name}/kernel"] = _float32(random.normal(0.0, math.sqrt(2 / n), (n, m)))
        params[f"{name}/bias"] = np.zeros(m, np.float32)
    # Positive but for a few per cent, as some way into a stream.
    mask = {
        n: _float32(case.inner_lr * random.normal(1.0, 0.7, p.shape)) for n, p in params.items()
    }
    strokes = random.uniform(size=(case.ways, case.inputs)) < 0.2

    def rows(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        labels = random.integers(case.ways, size=shape)
        images = strokes[labels] * random.uniform(size=(*shape, case.inputs))
        return _float32(images), labels.astype(np.int32)

    orders = [random.permutation(case.inner_steps) for _ in range(case.glances)]
    return {
        "params": params,
        "mask": mask,
        "batch": rows(case.inner_steps),
        "replay": rows(case.glances, case.replayed),
        "orders": np.array(orders, np.int32),
    }


def _layers(case: GlanceCase) -> list[str]:
    return [f"dense{i + 1}" for i in range(len(case.hidden))] + ["head"]


def _float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)
