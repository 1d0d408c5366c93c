"""The same meta-step in PyTorch, as users write it and in faster forms.

All forms compute Eqs. 8-10: K gated steps per task, the query gradient c, d theta = mean of c and
dm = -alpha * mean of (c * sum of the inner gradients). Then both are updated by SGD with Nesterov
momentum.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.cases_fewshot import FewShotCase
from benchmarks.torch_base import TorchForm, conv4_logits, in_our_layout

Tensors = dict[str, Any]


def conv4_loss(params: Tensors, images: Any, labels: Any) -> Any:
    """Cross entropy of Conv4, functional."""
    return functional.cross_entropy(conv4_logits(params, images), labels)


class Loop(TorchForm):
    """The loop of the authors' public code: `autograd.grad` per inner step, tasks in sequence."""

    def __init__(
        self,
        case: FewShotCase,
        arrays: dict[str, Any],
        device: str = "cpu",
        precision: str = "float32",
    ):
        super().__init__(device, precision)
        self.case = case
        self.params, self.mask = (
            {
                name: self.weight(self._head(name, x, to_torch=True))
                for name, x in arrays[tree].items()
            }
            for tree in ("params", "mask")
        )
        self.support, self.query = (
            # Per task: the memory format applies to the images of one task.
            (torch.stack([self.images(task) for task in images]), self.labels(labels))
            for images, labels in (arrays["support"], arrays["query"])
        )
        self.optimizers = {
            tree: torch.optim.SGD(
                list(leaves.values()), lr=case.outer_lr, momentum=case.momentum, nesterov=True
            )
            for tree, leaves in self._trees().items()
        }
        self.loss: Callable = conv4_loss

    def _trees(self) -> dict[str, Tensors]:
        return {"params": self.params, "mask": self.mask}

    def _head(self, name: str, x: np.ndarray, to_torch: bool) -> np.ndarray:
        """Permute the head's rows: our features are in the order h, w, c, PyTorch's in c, h, w."""
        if name != "head/kernel":
            return x
        h, w = self.case.image[0] // 16, self.case.image[1] // 16
        if to_torch:
            return x.reshape(h, w, self.case.width, -1).transpose(2, 0, 1, 3).reshape(x.shape)
        return x.reshape(self.case.width, h, w, -1).transpose(1, 2, 0, 3).reshape(x.shape)

    def step(self) -> None:
        """Take one meta-step, in place; returns when it is finished."""
        with self.autocast:
            self._meta_gradient()
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.finish()

    def _meta_gradient(self) -> None:
        case = self.case
        sizes = {n: case.inner_lr * (m >= 0).to(m.dtype) for n, m in self.mask.items()}
        for tree in (self.params, self.mask):
            for x in tree.values():
                x.grad = torch.zeros_like(x)
        for task in range(case.tasks):
            self._task(task, sizes)

    def _task(self, task: int, sizes: Tensors) -> None:
        names = list(self.params)
        phi = {n: p.detach().clone().requires_grad_() for n, p in self.params.items()}
        total = {n: torch.zeros_like(p) for n, p in phi.items()}
        images, labels = (x[task] for x in self.support)
        for _ in range(self.case.inner_steps):
            gradients = torch.autograd.grad(self.loss(phi, images, labels), list(phi.values()))
            with torch.no_grad():
                for n, g in zip(names, gradients, strict=True):
                    total[n] += g
                    phi[n] = (phi[n] - sizes[n] * g).requires_grad_()
        images, labels = (x[task] for x in self.query)
        outer = torch.autograd.grad(self.loss(phi, images, labels), list(phi.values()))
        for n, c in zip(names, outer, strict=True):
            self.params[n].grad += c / self.case.tasks
            self.mask[n].grad -= self.case.inner_lr * c * total[n] / self.case.tasks

    def result(self) -> dict[str, dict[str, np.ndarray]]:
        """The current parameters and masks, in our layout."""
        return {
            t: {n: self._ours(n, x) for n, x in tree.items()} for t, tree in self._trees().items()
        }

    def meta_gradient(self) -> dict[str, dict[str, np.ndarray]]:
        """The gradients of the first step: they are SGD's momentum after it."""
        return {
            tree: {
                n: self._ours(n, self.optimizers[tree].state[x]["momentum_buffer"])
                for n, x in leaves.items()
            }
            for tree, leaves in self._trees().items()
        }

    def _ours(self, name: str, x: Any) -> np.ndarray:
        return self._head(name, in_our_layout(x), to_torch=False)


class ChannelsLast(Loop):
    """The loop with images and kernels in channels_last."""

    name = "channels_last"
    memory_format = torch.channels_last


class Vmap(Loop):
    """All tasks at once: `torch.func.vmap` over `torch.func.grad`."""

    name = "vmap"

    def _meta_gradient(self) -> None:
        case = self.case
        with torch.no_grad():
            sizes = {n: case.inner_lr * (m >= 0).to(m.dtype) for n, m in self.mask.items()}
            params = {n: p.detach() for n, p in self.params.items()}
            c, total = torch.func.vmap(lambda s, q: self._gradients(params, sizes, s, q))(
                self.support, self.query
            )
            for n, m in self.mask.items():
                self.params[n].grad = c[n].mean(0)
                m.grad = -case.inner_lr * (c[n] * total[n]).mean(0)

    def _gradients(self, params: Tensors, sizes: Tensors, support: Any, query: Any) -> Any:
        # With autocast the norms get mixed dtypes; their derivative under vmap does not allow that.
        gradient = torch.func.grad(
            lambda p, images, labels: functional.cross_entropy(
                conv4_logits(p, images, one_dtype=True), labels
            )
        )
        phi, total = params, {n: torch.zeros_like(p) for n, p in params.items()}
        for _ in range(self.case.inner_steps):
            g = gradient(phi, *support)
            total = {n: total[n] + g[n] for n in g}
            phi = {n: phi[n] - sizes[n] * g[n] for n in g}
        return gradient(phi, *query), total


class Compiled(ChannelsLast):
    """The channels_last loop with its loss compiled by `torch.compile`."""

    name = "compile"

    def __init__(self, *args: Any):
        super().__init__(*args)
        # Static shapes: one program for the support batch, one for the query batch.
        self.loss = torch.compile(conv4_loss, dynamic=False)
