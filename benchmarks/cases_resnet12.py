"""The cases of the meta-step with ResNet-12."""

import dataclasses
import math
from typing import Any

import numpy as np

from benchmarks.cases_fewshot import FewShotCase


@dataclasses.dataclass(frozen=True)
class ResNetCase(FewShotCase):
    """One task with a small ResNet-12, and as many query images as support images.

    `width` is the number of channels of the first block. Each block has twice the channels of the
    previous one.
    """

    tasks: int = 1
    width: int = 16
    query_shots: int = 5

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of the four blocks."""
        return tuple(self.width * 2**block for block in range(4))

    def flops(self) -> float:
        """As `FewShotCase.flops`, for direct convolutions."""
        h, w, inputs = self.image
        total = 0.0
        for block, outputs in enumerate(self.channels):
            first = 9 * inputs * outputs + inputs * outputs  # with the skip connection
            passes = 2 if block == 0 else 3
            total += 2 * h * w * (passes * first + 3 * 2 * 9 * outputs * outputs)
            inputs, padding = outputs, int(block == 2)
            h, w = h // 2 + padding, w // 2 + padding
        return (total + 3 * 2 * inputs * self.ways) * self.images_seen

    def draw(self, seed: int = 0) -> dict[str, Any]:
        """As `FewShotCase.draw`."""
        random = np.random.default_rng(seed)
        params: dict[str, np.ndarray] = {}
        inputs = self.image[2]
        for block, outputs in enumerate(self.channels, 1):
            layers = {"conv1": (3, inputs), "conv2": (3, outputs), "conv3": (3, outputs)}
            for layer, (size, taken) in (layers | {"skip": (1, inputs)}).items():
                name = f"block{block}/{layer}"
                bound = math.sqrt(6 / (size * size * (taken + outputs)))
                shape = (size, size, taken, outputs)
                params[f"{name}/kernel"] = random.uniform(-bound, bound, shape)
                params[f"{name}/norm/scale"] = np.ones(outputs)
                params[f"{name}/norm/bias"] = np.zeros(outputs)
            inputs = outputs
        bound = math.sqrt(6 / (inputs + self.ways))
        params["head/kernel"] = random.uniform(-bound, bound, (inputs, self.ways))
        params["head/bias"] = np.zeros(self.ways)
        return self._with_mask(params, random) | self._tasks(random)


CASES = (ResNetCase(), ResNetCase(image=(28, 28, 3)))
