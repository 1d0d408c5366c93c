"""Shared by PyTorch's forms: devices, layouts, threads, the network and the gate."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional


class TorchForm:
    """Makes tensors for one device, layout and precision.

    Attributes:
      autocast: the context of the steps.
      finish: waits for the device.
    """

    name = "loop"
    memory_format = torch.contiguous_format

    def __init__(self, device: str = "cpu", precision: str = "float32"):
        use_precision(precision)
        self.device = torch_device(device)
        self.autocast = torch.autocast(
            self.device, dtype=torch.bfloat16, enabled=precision == "bfloat16"
        )
        self.finish = torch.cuda.synchronize if self.device == "cuda" else lambda: None

    def tensor(self, x: np.ndarray) -> Any:
        """A tensor on the device, from an array in PyTorch's order of axes."""
        out = torch.tensor(np.ascontiguousarray(x), device=self.device)
        return out.contiguous(memory_format=self.memory_format) if out.dim() == 4 else out

    def weight(self, x: np.ndarray) -> Any:
        """A tensor with gradient, from one of our kernels, gains or biases."""
        return self.tensor(to_torch_layout(x)).requires_grad_()

    def images(self, x: np.ndarray) -> Any:
        """[..., h, w, c] as [..., c, h, w]."""
        return self.tensor(np.moveaxis(x, -1, -3))

    def labels(self, x: np.ndarray) -> Any:
        """A tensor of int64, as the losses need it."""
        return torch.tensor(x, dtype=torch.int64, device=self.device)


def to_torch_layout(x: np.ndarray) -> np.ndarray:
    """Our kernels [k, k, in, out] as PyTorch's [out, in, k, k], [in, out] as [out, in]."""
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def in_our_layout(x: Any) -> np.ndarray:
    """The inverse of `to_torch_layout`, from a tensor to an array."""
    # A copy: on the CPU .numpy() shares memory with x, which the next step overwrites.
    out = x.detach().cpu().numpy().copy()
    return out.transpose(2, 3, 1, 0) if out.ndim == 4 else out.T


def conv4_logits(params: Mapping[str, Any], images: Any, one_dtype: bool = False) -> Any:
    """The logits [n, ways] of Conv4 for images [n, c, h, w]; norms use the batch's statistics.

    Biases are optional. `one_dtype` casts the norms' parameters to their input's dtype.
    """
    x = images
    for layer in range(1, 5):
        bias = params.get(f"conv{layer}/bias")
        x = functional.conv2d(x, params[f"conv{layer}/kernel"], bias, padding=1)
        gain, shift = params[f"norm{layer}/scale"], params[f"norm{layer}/bias"]
        if one_dtype:
            gain, shift = gain.to(x.dtype), shift.to(x.dtype)
        x = functional.batch_norm(x, None, None, gain, shift, training=True, eps=1e-5)
        x = functional.max_pool2d(functional.relu(x), 2)
    return functional.linear(x.flatten(1), params["head/kernel"], params.get("head/bias"))


class BinaryStep(torch.autograd.Function):
    """The binary gate: 1 where m >= 0; its straight-through derivative is `slope`."""

    @staticmethod
    def forward(ctx: Any, m: Any, slope: float) -> Any:
        ctx.slope = slope
        return (m >= 0).to(m.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return ctx.slope * gradient, None


def torch_device(device: str) -> str:
    """PyTorch's name for "cpu" or "gpu"; ValueError if PyTorch sees no CUDA device."""
    if device == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(f"PyTorch {torch.__version__} sees no CUDA device")
    torch.backends.cudnn.benchmark = True  # cuDNN chooses its fastest kernels in the warm-up
    return "cuda"


def use_precision(precision: str) -> None:
    """Allow or forbid TF32 for matrix products and convolutions on a GPU (bfloat16: autocast)."""
    allowed = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def product(size: int, device: str, precision: str) -> Callable[[], None]:
    """A function that multiplies two square matrices."""
    form = TorchForm(device, precision)
    a, b = (torch.rand(size, size, device=form.device) for _ in range(2))

    def multiply() -> None:
        with form.autocast:
            a @ b
        form.finish()

    return multiply


def fastest_threads(counts: Sequence[int], work: Callable[[], Any]) -> int:
    """Set PyTorch's threads to the number in `counts` with which `work` is fastest; returns it.

    `work` is called twice with each number, the first time to warm up.
    """
    seconds = {}
    for count in dict.fromkeys(counts):
        torch.set_num_threads(count)
        work()
        start = time.perf_counter()
        work()
        seconds[count] = time.perf_counter() - start
    best = min(seconds, key=lambda count: seconds[count])
    torch.set_num_threads(best)
    return best
