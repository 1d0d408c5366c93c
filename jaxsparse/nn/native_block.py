"""The compiled Conv4 block as a JAX function with derivatives of every order."""

from functools import partial

from jax import Array

from jaxsparse.nn import block_forms, native
from jaxsparse.nn.native_function import Arrays, Operation, apply


def block(images: Array, kernel: Array, scale: Array, bias: Array, eps: float) -> Array:
    """The block of `block_forms`, computed by `native.forward` and `native.backward`."""
    operation = Operation(
        partial(native.forward, eps=eps),
        _backward,
        partial(block_forms.by_patches, eps=eps),
        partial(block_forms.gram, eps=eps),
    )
    return apply(operation, images, kernel, scale, bias)


def _backward(inputs: Arrays, saved: Arrays, gradient: Array) -> tuple[Array | None, ...]:
    images, kernel, scale, _ = inputs
    return native.backward(images, kernel, scale, saved, gradient)
