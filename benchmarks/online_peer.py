"""A learner of (sparse-)C-MAML in PyTorch, as its public code orders a timestep.

Lists and loops as there: whole batches in a list, an `autograd.grad` for each inner step, fast
weights that keep the graph to theta and m, one `backward` over all pairs. What that code computes
beside it is left out: accuracies and losses of inner steps as numbers, the graph of a prediction.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers import from_torch_layout, to_torch_layout

Arrays = Mapping[str, np.ndarray]
Tensors = dict[str, Any]


class StraightThrough(torch.autograd.Function):
    """1 where m >= 0, and the derivative of the identity."""

    @staticmethod
    def forward(ctx: Any, m: Any) -> Any:
        return (m >= 0).to(m.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient


class Conv4(nn.Module):
    """Conv4 on 28x28; `forward` reads fast weights, where given, in place of its own."""

    def __init__(self, weights: Tensors):
        super().__init__()
        self.weights = nn.ParameterDict({_own(n): nn.Parameter(x) for n, x in weights.items()})

    def forward(self, images: Any, fast: Tensors) -> Any:
        """Logits; a norm's gain and shift are always its own, its statistics the batch's."""
        x = images
        for i in range(1, 5):
            x = functional.conv2d(x, fast[f"conv{i}/kernel"], fast[f"conv{i}/bias"], padding=1)
            gain, shift = self.weights[f"norm{i}_scale"], self.weights[f"norm{i}_bias"]
            x = functional.batch_norm(x, None, None, gain, shift, training=True, eps=1e-5)
            x = functional.max_pool2d(functional.relu(x), 2)
        return functional.linear(x.flatten(1), fast["head/kernel"], fast["head/bias"])


class Peer:
    """Theta, phi, m and the stored batches; see `learn`."""

    name = "loop"
    streams = 1
    memory_format = torch.contiguous_format

    def __init__(
        self,
        config: Any,
        params: Arrays,
        fast: Arrays,
        mask: Arrays,
        images: np.ndarray,
        labels: np.ndarray,
    ):
        """Start.

        Args:
          config: an `OnlineConfig`, its method sparse-cmaml or cmaml.
          params: theta by name.
          fast: phi by name: theta's names but those of the norms.
          mask: m for each of phi's names; of the same shape, or one rate for the whole tensor.
          images: the batches of the stream [n, images, 28, 28, channels], float32.
          labels: their labels [n, images].
        """
        self.config = config
        self.model = Conv4({n: self._tensor(x) for n, x in params.items()})
        self.phi = {n: self._tensor(x).requires_grad_() for n, x in fast.items()}
        self.theta = {n: self.model.weights[_own(n)] for n in fast}
        self.mask = {n: nn.Parameter(self._tensor(x)) for n, x in mask.items()}
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.model.parameters()), "lr": config.theta_lr},
                {"params": list(self.mask.values()), "lr": config.mask_lr},
            ]
        )
        self.batches = [
            (self._images(x), torch.tensor(y, dtype=torch.int64))
            for x, y in zip(images, labels, strict=True)
        ]
        self.stored: list[Any] = []
        self.restart, self.step = False, 0

    def fill(self, count: int) -> None:
        """Store the stream's first batches, as if they had just been met."""
        self.stored = self.batches[:count]

    def learn(self, timesteps: int) -> dict[str, list[float]]:
        """Meet the stream's first batches, one a timestep; "loss" and "adapted_loss" of each."""
        losses = [self._timestep(batch) for batch in self.batches[:timesteps]]
        return {"loss": [x for x, _ in losses], "adapted_loss": [x for _, x in losses]}

    def _timestep(self, batch: Any) -> tuple[float, float]:
        before = self._predict(batch)
        fast = self._adapt(self.theta if self.restart else self.phi, batch)
        self.phi = {n: w.detach().requires_grad_() for n, w in fast.items()}
        after = self._predict(batch)
        threshold = self.config.detection_threshold
        detected = threshold is not None and self.step > 0 and after + threshold <= before
        if (detected and self.stored) or len(self.stored) >= self.config.capacity:
            self._update()
            self.stored = []
        else:
            self.stored = [*self.stored, batch]
        self.restart = detected
        self.step += 1
        return before, after

    def _predict(self, batch: Any) -> float:
        with torch.no_grad():
            return self._loss(self.phi, batch).item()

    def _loss(self, fast: Tensors, batch: Any) -> Any:
        images, labels = batch
        return functional.cross_entropy(self.model(images, fast), labels)

    def _adapt(self, fast: Tensors, batch: Any) -> Tensors:
        """K steps; the result is a function of where they start and of m, not of gradients."""
        sizes = {n: self._step_size(m) for n, m in self.mask.items()}
        for _ in range(self.config.inner_steps):
            gradients = torch.autograd.grad(self._loss(fast, batch), list(fast.values()))
            fast = {n: w - sizes[n] * g for (n, w), g in zip(fast.items(), gradients, strict=True)}
        return fast

    def _step_size(self, m: Any) -> Any:
        if self.config.method == "cmaml":
            return m
        return self.config.inner_lr * StraightThrough.apply(m)

    def _update(self) -> None:
        """Theta and m, along the loss of each later half's batch after adapting to an earlier."""
        half = math.ceil(len(self.stored) / 2)
        pairs = list(zip(self.stored[:half], self.stored[half:] or self.stored, strict=False))
        losses = [self._loss(self._adapt(self.theta, support), query) for support, query in pairs]
        mean = torch.stack(losses).mean()
        modulation = self.config.modulation
        omega = 1.0 if modulation is None else 1.0 - math.exp(-modulation * mean.item())
        self.optimizer.zero_grad()
        (omega * mean).backward()
        self.optimizer.step()

    def phi_now(self) -> dict[str, np.ndarray]:
        """Phi by name, in our layout."""
        return {n: _array(x) for n, x in self.phi.items()}

    def gradients(self) -> dict[str, dict[str, np.ndarray]]:
        """Those that the last update of theta and of m followed."""
        own = {n: p.grad for n, p in self.model.weights.items()}
        theta = {n.replace("_", "/"): _array(g) for n, g in own.items()}
        return {"theta": theta, "mask": {n: _array(m.grad) for n, m in self.mask.items()}}

    def _tensor(self, x: np.ndarray) -> Any:
        out = torch.tensor(np.ascontiguousarray(to_torch_layout(np.asarray(x))))
        return out.contiguous(memory_format=self.memory_format) if out.dim() == 4 else out

    def _images(self, x: np.ndarray) -> Any:
        out = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        return out.contiguous(memory_format=self.memory_format)


class ChannelsLast(Peer):
    """The same with images and kernels in channels_last."""

    name = "channels_last"
    memory_format = torch.channels_last


FORMS: Sequence[type[Peer]] = (Peer, ChannelsLast)


def choose_threads(counts: Sequence[int], peers: Sequence[Peer]) -> int:
    """Set PyTorch's number of threads to the one at which a timestep of each peer is fastest.

    Args:
      counts: what to choose from.
      peers: who takes a timestep, after one to warm up.

    Returns:
      The number.
    """
    seconds = {}
    for count in counts:
        torch.set_num_threads(count)
        for _ in range(2):
            begun = time.perf_counter()
            for peer in peers:
                peer.fill(0)
                peer.learn(1)
            seconds[count] = time.perf_counter() - begun
    best = min(seconds, key=lambda count: seconds[count])
    torch.set_num_threads(best)
    return best


def _own(name: str) -> str:
    return name.replace("/", "_")  # a module's parameters may have no path for a name


def _array(x: Any) -> np.ndarray:
    # A copy: .numpy() shares its memory with x.
    return from_torch_layout(x.detach().numpy().copy())
