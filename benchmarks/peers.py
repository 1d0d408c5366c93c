"""The same meta-step in PyTorch, as its users write it and in the stronger forms there are.

Each form is a class with `step()`: one meta-step from the given start, in place. All do the
arithmetic of Eqs. 8-10: K gated steps per task, the query gradient c, d theta = mean c and
dm = -alpha * mean(c * sum of the inner gradients), then SGD with Nesterov momentum on both.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.cases import Arrays, Case

Tensors = dict[str, Any]


def to_torch_layout(x: np.ndarray) -> np.ndarray:
    """Our kernels [k, k, in, out] as PyTorch's [out, in, k, k], [in, out] as [out, in]."""
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def from_torch_layout(x: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch_layout`."""
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


def _head_to_chw(x: np.ndarray, case: Case) -> np.ndarray:
    """Our head reads the features in the order h, w, c; PyTorch's flatten gives c, h, w."""
    h, w = case.image[0] // 16, case.image[1] // 16
    return x.reshape(h, w, case.width, -1).transpose(2, 0, 1, 3).reshape(x.shape)


def _head_to_hwc(x: np.ndarray, case: Case) -> np.ndarray:
    h, w = case.image[0] // 16, case.image[1] // 16
    return x.reshape(case.width, h, w, -1).transpose(1, 2, 0, 3).reshape(x.shape)


def conv4_loss(params: Tensors, images: Any, labels: Any, one_dtype: bool = False) -> Any:
    """Cross entropy of Conv4, functional, from PyTorch's own layers.

    With `one_dtype` the norms' parameters are cast to their input's dtype.
    """
    x = images
    for layer in range(1, 5):
        x = functional.conv2d(x, params[f"conv{layer}/kernel"], padding=1)
        gain, bias = params[f"norm{layer}/scale"], params[f"norm{layer}/bias"]
        if one_dtype:
            gain, bias = gain.to(x.dtype), bias.to(x.dtype)
        x = functional.batch_norm(x, None, None, gain, bias, training=True, eps=1e-5)
        x = functional.max_pool2d(functional.relu(x), 2)
    logits = functional.linear(x.flatten(1), params["head/kernel"])
    return functional.cross_entropy(logits, labels)


class Form:
    """The authors' public loop: `autograd.grad` per inner step, tasks one after the other."""

    name = "loop"
    memory_format = torch.contiguous_format

    def __init__(self, case: Case, arrays: Arrays, device: str = "cpu", precision: str = "float32"):
        device = torch_device(device)
        use_precision(precision)
        self.case = case
        self.autocast = torch.autocast(
            device, dtype=torch.bfloat16, enabled=precision == "bfloat16"
        )
        self._finish = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.params, self.mask = (
            {
                name: self._tensor(self._export(name, x), device).requires_grad_()
                for name, x in arrays[tree].items()
            }
            for tree in ("params", "mask")
        )
        self.support, self.query = (
            (
                self._tensor(arrays[split][0].transpose(0, 1, 4, 2, 3), device),
                torch.tensor(arrays[split][1], dtype=torch.int64, device=device),
            )
            for split in ("support", "query")
        )
        self.optimizers = [
            torch.optim.SGD(
                list(tree.values()), lr=case.outer_lr, momentum=case.momentum, nesterov=True
            )
            for tree in (self.params, self.mask)
        ]
        self.loss: Callable = conv4_loss

    def _export(self, name: str, x: np.ndarray) -> np.ndarray:
        if name == "head/kernel":
            x = _head_to_chw(x, self.case)
        return to_torch_layout(x)

    def _tensor(self, x: np.ndarray, device: str) -> Any:
        out = torch.tensor(np.ascontiguousarray(x), device=device)
        if out.dim() == 4:
            return out.contiguous(memory_format=self.memory_format)
        if out.dim() == 5:  # a batch of tasks: the layout is that of each task's images
            return torch.stack([t.contiguous(memory_format=self.memory_format) for t in out])
        return out

    def step(self) -> None:
        """One meta-step, in place; returns when it is done."""
        with self.autocast:
            self._meta_gradient()
        for optimizer in self.optimizers:
            optimizer.step()
        self._finish()

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
        images, labels = self._batch(self.support, task)
        for _ in range(self.case.inner_steps):
            gradients = torch.autograd.grad(self.loss(phi, images, labels), list(phi.values()))
            with torch.no_grad():
                for n, g in zip(names, gradients, strict=True):
                    total[n] += g
                    phi[n] = (phi[n] - sizes[n] * g).requires_grad_()
        images, labels = self._batch(self.query, task)
        outer = torch.autograd.grad(self.loss(phi, images, labels), list(phi.values()))
        for n, c in zip(names, outer, strict=True):
            self.params[n].grad += c / self.case.tasks
            self.mask[n].grad -= self.case.inner_lr * c * total[n] / self.case.tasks

    def _batch(self, split: tuple[Any, Any], task: int) -> tuple[Any, Any]:
        return split[0][task], split[1][task]

    def result(self) -> dict[str, dict[str, np.ndarray]]:
        """The parameters and masks now, in our layout."""
        trees = {"params": self.params, "mask": self.mask}
        return {t: {n: self._import(n, x) for n, x in tree.items()} for t, tree in trees.items()}

    def meta_gradient(self) -> dict[str, dict[str, np.ndarray]]:
        """The gradients of the first step: SGD's momentum after it, since it starts at zero."""
        trees = zip(("params", "mask"), (self.params, self.mask), self.optimizers, strict=True)
        return {
            tree: {n: self._import(n, sgd.state[x]["momentum_buffer"]) for n, x in leaves.items()}
            for tree, leaves, sgd in trees
        }

    def _import(self, name: str, x: Any) -> np.ndarray:
        # A copy: on the CPU .numpy() shares its memory with x, which the next step overwrites.
        out = from_torch_layout(x.detach().cpu().numpy().copy())
        return _head_to_hwc(out, self.case) if name == "head/kernel" else out


class ChannelsLast(Form):
    """The loop with images and kernels in channels_last."""

    name = "channels_last"
    memory_format = torch.channels_last


class Vmap(Form):
    """All tasks at once: `torch.func.vmap` over `torch.func.grad`."""

    name = "vmap"

    def __init__(self, case: Case, arrays: Arrays, device: str = "cpu", precision: str = "float32"):
        super().__init__(case, arrays, device, precision)
        # Autocast mixes dtypes in the norms, and their derivative under vmap cannot.
        self.loss = functools.partial(conv4_loss, one_dtype=True)

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
        gradient = torch.func.grad(self.loss)
        phi, total = params, {n: torch.zeros_like(p) for n, p in params.items()}
        for _ in range(self.case.inner_steps):
            g = gradient(phi, *support)
            total = {n: total[n] + g[n] for n in g}
            phi = {n: phi[n] - sizes[n] * g[n] for n in g}
        return gradient(phi, *query), total


class Compiled(ChannelsLast):
    """The channels_last loop with its loss compiled by `torch.compile`."""

    name = "compile"

    def __init__(self, case: Case, arrays: Arrays, device: str = "cpu", precision: str = "float32"):
        super().__init__(case, arrays, device, precision)
        # Static shapes: one program for the support batch, one for the query batch.
        self.loss = torch.compile(conv4_loss, dynamic=False)


FORMS: dict[str, type[Form]] = {form.name: form for form in (Form, ChannelsLast, Vmap, Compiled)}


def torch_device(device: str) -> str:
    """PyTorch's name of "cpu" or "gpu".

    Raises:
      ValueError: PyTorch was built without CUDA, or sees no device.
    """
    if device == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(f"PyTorch {torch.__version__} sees no CUDA device")
    torch.backends.cudnn.benchmark = True  # let cuDNN choose its fastest kernels in the warm-up
    return "cuda"


def use_precision(precision: str) -> None:
    """Let matrix products and convolutions on a GPU use TF32, or not (bfloat16: autocast)."""
    allowed = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def matmul_seconds(size: int, device: str, precision: str, repeats: int) -> list[float]:
    """Seconds of the product of two square matrices, `repeats` times after a warm-up."""
    use_precision(precision)
    name = torch_device(device)
    a, b = (torch.rand(size, size, device=name) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.autocast(name, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            a @ b
        if name == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]
