"""(Sparse-)La-MAML in PyTorch: glances in several forms, and a learner of whole streams.

Lists and loops are those of La-MAML's public code: an inner step is an `autograd.grad`, each glance
ends with one `backward`, the memory is a list of examples that is shuffled before each pick. A
clamp of the inner gradients, whose result that code does not use, is left out.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.cases_continual import Draws, GlanceCase
from benchmarks.torch_base import BinaryStep, TorchForm, in_our_layout

TEST_BATCH = 1000

Tensors = list[Any]  # kernel and bias of each layer, in order


def mlp_logits(params: Tensors, images: Any) -> Any:
    """The logits of a ReLU network on rows of pixels, functional."""
    x = images
    for i in range(0, len(params) - 2, 2):
        x = functional.relu(functional.linear(x, params[i], params[i + 1]))
    return functional.linear(x, params[-2], params[-1])


def mlp_loss(params: Tensors, images: Any, labels: Any) -> Any:
    """Cross entropy of `mlp_logits`."""
    return functional.cross_entropy(mlp_logits(params, images), labels)


def cnn_loss(params: Tensors, images: Any, labels: Any) -> Any:
    """Cross entropy of convolutions of stride 2 and `mlp_logits`, for images [n, c, h, w]."""
    x, layer = images, 0
    while params[layer].ndim == 4:
        x = functional.relu(functional.conv2d(x, params[layer], params[layer + 1], 2, 1))
        layer += 2
    # Channels last, the order of the weights of our linear layer.
    return mlp_loss(params[layer:], x.permute(0, 2, 3, 1).flatten(1), labels)


class LaMAML(TorchForm):
    """Parameters, masks and a glance, with the loop of the authors' public code."""

    def __init__(
        self,
        case: GlanceCase,
        arrays: dict[str, Any],
        device: str = "cpu",
        precision: str = "float32",
    ):
        """Start from "params" and "mask" of the arrays; both are in the order of the layers."""
        super().__init__(device, precision)
        self.case, self.names = case, list(arrays["params"])
        self.params, self.mask = (
            [self.weight(arrays[tree][name]) for name in self.names] for tree in ("params", "mask")
        )
        self.loss: Callable = cnn_loss if case.convolutions else mlp_loss

    def glance(self, images: Any, labels: Any, meta: tuple[Any, Any]) -> None:
        """Update parameters and masks; the inner steps use the batch, the meta-losses `meta`."""
        for x in (*self.params, *self.mask):
            x.grad = None
        with self.autocast:
            self._meta_gradient(images, labels, meta)
        for tree in (self.params, self.mask):
            torch.nn.utils.clip_grad_norm_(tree, self.case.clip_norm)
        with torch.no_grad():
            for p, m in zip(self.params, self.mask, strict=True):
                m -= self.case.mask_lr * m.grad
                p -= self._size(m) * p.grad

    def _size(self, m: Any) -> Any:
        if self.case.method == "lamaml":
            return functional.relu(m)
        return self.case.inner_lr * BinaryStep.apply(m, self.case.slope)

    def _meta_gradient(self, images: Any, labels: Any, meta: tuple[Any, Any]) -> None:
        phi, losses = self.params, []
        for rows in self._chunks():
            loss = self.loss(phi, images[rows], labels[rows])
            gradients = torch.autograd.grad(loss, phi, create_graph=self.case.second_order)
            phi = [p - self._size(m) * g for p, m, g in zip(phi, self.mask, gradients, strict=True)]
            losses.append(self.loss(phi, *meta))
        (sum(losses) / len(losses)).backward()

    def _chunks(self) -> list[slice]:
        """The rows of each inner step."""
        n = self.case.inner_rows
        return [slice(k * n, (k + 1) * n) for k in range(self.case.inner_steps)]

    def result(self) -> dict[str, dict[str, np.ndarray]]:
        """The current parameters and masks, in our layout."""
        return {
            tree: {n: in_our_layout(x) for n, x in zip(self.names, leaves, strict=True)}
            for tree, leaves in (("params", self.params), ("mask", self.mask))
        }


# ---- glances at one batch


class Loop(LaMAML):
    """The glances of a case."""

    def __init__(self, case: GlanceCase, arrays: dict[str, Any], *options: str):
        super().__init__(case, arrays, *options)
        self.batch, self.replay = (
            (self._pixels(images), self.labels(labels))
            for images, labels in (arrays["batch"], arrays["replay"])
        )
        self.orders = self.labels(arrays["orders"])

    def _pixels(self, images: np.ndarray) -> Any:
        if self.case.convolutions:
            return self.images(images)
        return self.tensor(images.reshape(*images.shape[:-3], -1))

    def step(self) -> None:
        """Take all glances at the batch, in place; returns when they are finished."""
        for number, order in enumerate(self.orders):
            images, labels = (x[order] for x in self.batch)
            replayed = [x[number] for x in self.replay]
            meta = torch.cat([replayed[0], images]), torch.cat([replayed[1], labels])
            self.glance(images, labels, meta)
        self.finish()


class Sums(Loop):
    """The first-order rule as explicit sums: no graph is kept over the inner steps."""

    name = "sums"

    def _meta_gradient(self, images: Any, labels: Any, meta: tuple[Any, Any]) -> None:
        with torch.no_grad():
            sizes = [self._size(m) for m in self.mask]
        phi = [p.detach().clone().requires_grad_() for p in self.params]
        total, d_params, d_sizes = ([torch.zeros_like(p) for p in phi] for _ in range(3))
        for rows in self._chunks():
            loss = self.loss(phi, images[rows], labels[rows])
            gradients = torch.autograd.grad(loss, phi)
            with torch.no_grad():
                for p, a, g, t in zip(phi, sizes, gradients, total, strict=True):
                    t += g
                    p.addcmul_(a, g, value=-1)
            outer = torch.autograd.grad(self.loss(phi, *meta), phi)
            for h, t, d, s in zip(outer, total, d_params, d_sizes, strict=True):
                d += h
                s.addcmul_(h, t, value=-1)
        for p, m, d, s in zip(self.params, self.mask, d_params, d_sizes, strict=True):
            p.grad = d / self.case.inner_steps
            (m.grad,) = torch.autograd.grad(self._size(m), m, s / self.case.inner_steps)


class Compiled(Loop):
    """The loop with its loss compiled by `torch.compile`."""

    name = "compile"

    def __init__(self, *args: Any):
        super().__init__(*args)
        # Static shapes: one program for the rows of an inner step, one for the meta rows.
        self.loss = torch.compile(self.loss, dynamic=False)


# ---- a whole stream


class StreamLearner(LaMAML):
    """Learns a stream of tasks with a memory; see `train_task`."""

    def __init__(self, case: GlanceCase, arrays: dict[str, Any], memories: int, seed: int = 0):
        """Start; the seed is for the orders, the memory and the replayed rows."""
        super().__init__(case, arrays)
        self.memories = memories
        self.memory: list[tuple[np.ndarray, int]] = []
        self.age = 0
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def train_task(
        self, images: Any, labels: Any, draws: Sequence[Draws | None] | None = None
    ) -> None:
        """Learn one task, batch by batch.

        Args:
          images: float32 [n, inputs].
          labels: int64 [n].
          draws: the draws for each batch of the rows in order; default: the rows are shuffled and
            everything is drawn here.
        """
        size = self.case.batch_rows
        if draws is None:
            order = torch.randperm(len(images), generator=self.generator)
            images, labels = images[order], labels[order]
            draws = [None] * (len(images) // size)
        for number, drawn in enumerate(draws):
            rows = slice(number * size, (number + 1) * size)
            for glance in range(self.case.glances):
                self._learn(images[rows], labels[rows], glance, drawn)

    def _learn(self, images: Any, labels: Any, glance: int, drawn: Draws | None) -> None:
        if drawn is None:
            order = torch.randperm(len(images), generator=self.generator)
        else:
            order = torch.tensor(drawn.orders[glance])
        images, labels = images[order], labels[order]
        meta = self._meta_batch(images, labels, None if drawn is None else drawn.picks[glance])
        self.glance(images, labels, meta)
        if glance == 0:
            for k in range(len(images)):
                self._remember(images[k], labels[k], None if drawn is None else drawn.slots[k])

    def _meta_batch(self, images: Any, labels: Any, picks: Sequence[int] | None) -> tuple[Any, Any]:
        """The replayed examples, then the batch, stacked."""
        if picks is None:
            picks, places = [], list(range(len(self.memory)))
            for _ in range(min(self.case.meta_rows - self.case.batch_rows, len(self.memory))):
                self.random.shuffle(places)
                picks.append(places[0])
        rows = [self.memory[i] for i in picks]
        rows += zip(images.numpy(), labels.tolist(), strict=True)
        stacked, classes = zip(*rows, strict=True)
        return torch.from_numpy(np.array(stacked)), torch.tensor(classes)

    def _remember(self, image: Any, label: Any, slot: int | None) -> None:
        self.age += 1
        example = (image.numpy(), int(label))
        if len(self.memory) < self.memories:
            self.memory.append(example)
            return
        slot = self.random.randint(0, self.age) if slot is None else slot
        if slot < self.memories:
            self.memory[slot] = example

    def accuracy(self, images: Any, labels: Any) -> float:
        """The accuracy of the slow weights on test images."""
        hits = 0
        with torch.no_grad():
            for start in range(0, len(images), TEST_BATCH):
                rows = slice(start, start + TEST_BATCH)
                logits = mlp_logits(self.params, images[rows])
                hits += int((logits.argmax(1) == labels[rows]).sum())
        return hits / len(images)


def tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """uint8 images as rows in [0, 1], [n, inputs], and their labels as int64."""
    rows = images.reshape(len(images), -1) / np.float32(255)
    return torch.tensor(rows), torch.tensor(labels, dtype=torch.int64)
