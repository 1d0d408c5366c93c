"""The compiled block of Conv4 as a function with derivatives of every order."""

from functools import partial

from jax import Array

from jaxsparse.nn import block_forms, native
from jaxsparse.nn.native_function import Arrays, Operation, apply


def block(images: Array, kernel: Array, scale: Array, bias: Array, eps: float) -> Array:
    """What `block_forms` computes, by `native.forward` and `native.backward`."""
    forward, in_xla, for_missing = (
        partial(f, eps=eps) for f in (native.forward, block_forms.by_patches, block_forms.gram)
    )
    operation = Operation(forward, _backward, in_xla, for_missing)
    return apply(operation, images, kernel, scale, bias)


def _backward(inputs: Arrays, saved: Arrays, gradient: Array) -> tuple[Array | None, ...]:
    images, kernel, scale, _ = inputs
    return native.backward(images, kernel, scale, saved, gradient)
