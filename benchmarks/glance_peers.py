"""The same glances in PyTorch, as its users write them and in the stronger forms there are.

Each form is a class with `step()`: all glances at the batch, in place.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.glance import GlanceCase
from benchmarks.peers import (
    from_torch_layout,
    to_torch_layout,
    torch_device,
    use_precision,
)

Tensors = list[Any]  # kernel and bias of each layer, in order


def mlp_loss(params: Tensors, images: Any, labels: Any) -> Any:
    """Cross entropy of a ReLU network on rows of pixels, functional."""
    x = images
    for i in range(0, len(params) - 2, 2):
        x = functional.relu(functional.linear(x, params[i], params[i + 1]))
    return functional.cross_entropy(functional.linear(x, params[-2], params[-1]), labels)


def cnn_loss(params: Tensors, images: Any, labels: Any) -> Any:
    """The same behind convolutions of stride 2, on images [n, c, h, w]."""
    x, layer = images, 0
    while params[layer].ndim == 4:
        x = functional.relu(functional.conv2d(x, params[layer], params[layer + 1], 2, 1))
        layer += 2
    # Channels last, the order in which our linear layer has its weights.
    return mlp_loss(params[layer:], x.permute(0, 2, 3, 1).flatten(1), labels)


class BinaryStep(torch.autograd.Function):
    """The binary gate: 1 where m >= 0, and a derivative of one half, or `slope`, everywhere."""

    @staticmethod
    def forward(ctx: Any, m: Any, slope: float = 0.5) -> Any:
        ctx.slope = slope
        return (m >= 0).to(m.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return ctx.slope * gradient, None


class GlanceLoop:
    """The authors' public loop: fast weights by `autograd.grad`, one `backward` per glance."""

    name = "loop"

    def __init__(
        self,
        case: GlanceCase,
        arrays: dict[str, Any],
        device: str = "cpu",
        precision: str = "float32",
    ):
        device = torch_device(device)
        use_precision(precision)
        self.case = case
        self.autocast = torch.autocast(
            device, dtype=torch.bfloat16, enabled=precision == "bfloat16"
        )
        self._finish = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.names = list(arrays["params"])
        self.params: Tensors
        self.mask: Tensors
        self.params, self.mask = (
            [
                torch.tensor(np.ascontiguousarray(to_torch_layout(arrays[tree][n])), device=device)
                for n in self.names
            ]
            for tree in ("params", "mask")
        )
        for x in (*self.params, *self.mask):
            x.requires_grad_()
        (self.images, self.labels), self.replay = (
            (
                torch.tensor(self._pixels(images), device=device),
                torch.tensor(labels, dtype=torch.int64, device=device),
            )
            for images, labels in (arrays["batch"], arrays["replay"])
        )
        self.orders = torch.tensor(arrays["orders"], dtype=torch.int64, device=device)
        self.loss: Callable = cnn_loss if case.convolutions else mlp_loss

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        if not self.case.convolutions:
            return images.reshape(*images.shape[:-3], -1)
        return np.ascontiguousarray(np.moveaxis(images, -1, -3))

    def step(self) -> None:
        """All glances at the batch, in place; returns when they are done."""
        for glance in range(self.case.glances):
            self._glance(glance)
        self._finish()

    def _glance(self, glance: int) -> None:
        order = self.orders[glance]
        images, labels = self.images[order], self.labels[order]
        meta = (
            torch.cat([self.replay[0][glance], images]),
            torch.cat([self.replay[1][glance], labels]),
        )
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
        """The parameters and masks now, in our layout."""
        return {
            tree: {
                n: from_torch_layout(x.detach().cpu().numpy()).copy()
                for n, x in zip(self.names, leaves, strict=True)
            }
            for tree, leaves in (("params", self.params), ("mask", self.mask))
        }


class GlanceSums(GlanceLoop):
    """The first-order sums written out: no graph is kept over the inner steps."""

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


class GlanceCompiled(GlanceLoop):
    """The loop with its loss compiled by `torch.compile`."""

    name = "compile"

    def __init__(
        self,
        case: GlanceCase,
        arrays: dict[str, Any],
        device: str = "cpu",
        precision: str = "float32",
    ):
        super().__init__(case, arrays, device, precision)
        # Static shapes: one program for the inner steps' rows, one for the meta rows.
        self.loss = torch.compile(self.loss, dynamic=False)


FORMS: dict[str, type[GlanceLoop]] = {
    form.name: form for form in (GlanceLoop, GlanceSums, GlanceCompiled)
}
