"""The forms of `torch_fewshot` with ResNet-12, each with its fastest number of threads."""

import os
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import torch_fewshot
from benchmarks.torch_base import fastest_threads


def resnet12_logits(params: dict[str, Any], images: Any) -> Any:
    """ResNet-12 of PyTorch's layers; batch norm uses the statistics of the batch."""

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


class Loop(torch_fewshot.Loop):
    """`torch_fewshot.Loop` with ResNet-12."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.loss = _loss
        counts = (len(os.sched_getaffinity(0)), 1)
        self.threads = fastest_threads(counts, self._meta_gradient)

    def step(self) -> None:
        torch.set_num_threads(self.threads)
        super().step()

    def _head(self, name: str, x: np.ndarray, to_torch: bool) -> np.ndarray:
        return x  # its inputs are means, one per channel, in the same order in both libraries


class ChannelsLast(Loop):
    """`torch_fewshot.ChannelsLast` with ResNet-12."""

    name = "channels_last"
    memory_format = torch.channels_last


def _loss(params: dict[str, Any], images: Any, labels: Any) -> Any:
    return functional.cross_entropy(resnet12_logits(params, images), labels)
