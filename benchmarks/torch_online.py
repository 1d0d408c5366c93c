"""(Sparse-)C-MAML in PyTorch, with timesteps as in its public code.

Lists and loops are those of that code: whole batches in a list, an `autograd.grad` for each inner
step, fast weights that keep the graph to theta and m, one `backward` over all pairs. Computations
that do not affect learning are left out: accuracies and losses of inner steps as numbers, the graph
of a prediction.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.torch_base import BinaryStep, TorchForm, conv4_logits, in_our_layout

Arrays = Mapping[str, np.ndarray]
Tensors = dict[str, Any]


class Loop(TorchForm):
    """A learner with theta, phi, m and stored batches; see `learn`."""

    streams = 1

    def __init__(
        self,
        config: Any,
        params: Arrays,
        fast: Arrays,
        mask: Arrays,
        batches: tuple[np.ndarray, np.ndarray],
    ):
        """Start.

        Args:
          config: an `OnlineConfig` with method sparse-cmaml or cmaml.
          params: theta by name.
          fast: phi by name; it has all names of theta except the norms'.
          mask: m by phi's names; of the same shape, or one rate for the whole tensor.
          batches: batches of the stream: images [n, images, 28, 28, channels], float32, and labels
            [n, images].
        """
        super().__init__()
        self.config = config
        self.theta = {n: self.weight(x) for n, x in params.items()}
        self.phi = {n: self.weight(x) for n, x in fast.items()}
        self.mask = {n: self.weight(x) for n, x in mask.items()}
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.theta.values()), "lr": config.theta_lr},
                {"params": list(self.mask.values()), "lr": config.mask_lr},
            ]
        )
        self.batches = [(self.images(x), self.labels(y)) for x, y in zip(*batches, strict=True)]
        self.stored: list[Any] = []
        self.restart, self.timestep = False, 0

    def fill(self, count: int) -> None:
        """Set the stored batches to the stream's first batches."""
        self.stored = self.batches[:count]

    def learn(self, timesteps: int) -> dict[str, list[float]]:
        """Learn the stream's first batches, one per timestep; returns the losses of each."""
        losses = [self._timestep(batch) for batch in self.batches[:timesteps]]
        return {"loss": [x for x, _ in losses], "adapted_loss": [x for _, x in losses]}

    def _timestep(self, batch: Any) -> tuple[float, float]:
        before = self._predict(batch)
        fast = self._adapt(self._slow() if self.restart else self.phi, batch)
        self.phi = {n: w.detach().requires_grad_() for n, w in fast.items()}
        after = self._predict(batch)
        threshold = self.config.detection_threshold
        detected = threshold is not None and self.timestep > 0 and after + threshold <= before
        if (detected and self.stored) or len(self.stored) >= self.config.capacity:
            self._update()
            self.stored = []
        else:
            self.stored = [*self.stored, batch]
        self.restart = detected
        self.timestep += 1
        return before, after

    def _slow(self) -> Tensors:
        """The part of theta that the inner loop starts from."""
        return {n: self.theta[n] for n in self.phi}

    def _predict(self, batch: Any) -> float:
        with torch.no_grad():
            return self._loss(self.phi, batch).item()

    def _loss(self, fast: Tensors, batch: Any) -> Any:
        """The loss of fast weights; gains and shifts of norms are always theta's."""
        images, labels = batch
        return functional.cross_entropy(conv4_logits({**self.theta, **fast}, images), labels)

    def _adapt(self, fast: Tensors, batch: Any) -> Tensors:
        """K steps; the graph contains their start and m, not the gradients (first order)."""
        sizes = {n: self._step_size(m) for n, m in self.mask.items()}
        for _ in range(self.config.inner_steps):
            gradients = torch.autograd.grad(self._loss(fast, batch), list(fast.values()))
            fast = {n: w - sizes[n] * g for (n, w), g in zip(fast.items(), gradients, strict=True)}
        return fast

    def _step_size(self, m: Any) -> Any:
        if self.config.method == "cmaml":
            return m
        return self.config.inner_lr * BinaryStep.apply(m, 1.0)

    def _update(self) -> None:
        """Update theta and m: adapt to batches of the first half, take losses on the second."""
        half = math.ceil(len(self.stored) / 2)
        pairs = list(zip(self.stored[:half], self.stored[half:] or self.stored, strict=False))
        losses = [self._loss(self._adapt(self._slow(), support), query) for support, query in pairs]
        mean = torch.stack(losses).mean()
        modulation = self.config.modulation
        omega = 1.0 if modulation is None else 1.0 - math.exp(-modulation * mean.item())
        self.optimizer.zero_grad()
        (omega * mean).backward()
        self.optimizer.step()

    def phi_now(self) -> dict[str, np.ndarray]:
        """The current phi by name, in our layout."""
        return {n: in_our_layout(x) for n, x in self.phi.items()}

    def gradients(self) -> dict[str, dict[str, np.ndarray]]:
        """The gradients of the last update, for theta and m."""
        trees = {"theta": self.theta, "mask": self.mask}
        return {
            tree: {n: in_our_layout(x.grad) for n, x in leaves.items()}
            for tree, leaves in trees.items()
        }


class ChannelsLast(Loop):
    """The same with images and kernels in channels_last."""

    name = "channels_last"
    memory_format = torch.channels_last


FORMS: Sequence[type[Loop]] = (Loop, ChannelsLast)
