"""The meta-step with ResNet-12: cases, our form and the PyTorch forms."""

import dataclasses
import math
import os
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


def make_ours(case: ResNetCase, *args: Any) -> Any:
    """`sparse_maml_step` with ResNet-12."""
    from benchmarks.ours_fewshot import MetaStep
    from jaxsparse import nn

    class Step(MetaStep):
        def _network(self) -> nn.Model:
            return nn.resnet12(self.case.ways, case.channels, self.case.image)

    return Step(case, *args)


def resnet12_logits(params: dict[str, Any], images: Any) -> Any:
    """ResNet-12 of PyTorch's layers; batch norm uses the statistics of the batch."""
    from torch.nn import functional

    def unit(x: Any, name: str) -> Any:
        kernel = params[f"{name}/kernel"]
        x = functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        gain, shift = params[f"{name}/norm/scale"], params[f"{name}/norm/bias"]
        return functional.batch_norm(x, None, None, gain, shift, training=True, eps=1e-5)

    x = images
    for block in range(1, 5):
        y = x
        for layer in ("conv1", "conv2"):
            y = functional.leaky_relu(unit(y, f"block{block}/{layer}"), 0.01)
        y = unit(y, f"block{block}/conv3") + unit(x, f"block{block}/skip")
        x = functional.leaky_relu(y, 0.01)
        if block < 4:
            x = functional.max_pool2d(x, 2, padding=int(block == 3))
    return functional.linear(x.mean((2, 3)), params["head/kernel"], params["head/bias"])


def _torch_form(form: type, case: ResNetCase, *args: Any) -> Any:
    """A form of `torch_fewshot` with ResNet-12 and the fastest number of threads."""
    import torch
    from torch.nn import functional

    from benchmarks.torch_base import fastest_threads

    class Step(form):
        def __init__(self) -> None:
            super().__init__(case, *args)
            self.loss = lambda params, images, labels: functional.cross_entropy(
                resnet12_logits(params, images), labels
            )
            counts = (len(os.sched_getaffinity(0)), 1)
            self.threads = fastest_threads(counts, self._meta_gradient)

        def step(self) -> None:
            torch.set_num_threads(self.threads)
            super().step()

        def _head(self, name: str, x: np.ndarray, to_torch: bool) -> np.ndarray:
            return x  # its inputs are means, one per channel, in the same order in both libraries

    return Step()


def make_loop(case: ResNetCase, *args: Any) -> Any:
    """`torch_fewshot.Loop` with ResNet-12."""
    from benchmarks.torch_fewshot import Loop

    return _torch_form(Loop, case, *args)


def make_channels_last(case: ResNetCase, *args: Any) -> Any:
    """`torch_fewshot.ChannelsLast` with ResNet-12."""
    from benchmarks.torch_fewshot import ChannelsLast

    return _torch_form(ChannelsLast, case, *args)
