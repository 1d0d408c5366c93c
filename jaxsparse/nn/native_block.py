"""The compiled Conv4 block as a JAX function with derivatives of every order."""

from functools import partial

import jax
from jax import Array

from jaxsparse.nn import block_forms, native
from jaxsparse.nn.native_function import Arrays, Operation, apply


def block(images: Array, kernel: Array, scale: Array, bias: Array, eps: float) -> Array:
    """The block of `block_forms`, computed by `native.forward` and `native.backward`."""
    few = native.has_few_channels(kernel)
    in_xla = block_forms.gram if few else _by_compiled_convolution
    operation = Operation(
        partial(native.forward, eps=eps),
        _backward,
        partial(in_xla, eps=eps),
        partial(block_forms.gram, eps=eps),
    )
    return apply(operation, images, kernel, scale, bias)


def _backward(inputs: Arrays, saved: Arrays, gradient: Array) -> tuple[Array | None, ...]:
    images, kernel, scale, _ = inputs
    return native.backward(images, kernel, scale, saved, gradient)


def _by_compiled_convolution(
    images: Array, kernel: Array, scale: Array, bias: Array, eps: float
) -> Array:
    """The block, with the derivatives of every order of its convolution computed by C++.

    A second derivative of the block consists of seven such convolutions and of sums over arrays.
    """
    n, h, w, _ = images.shape
    y = _conv(images, kernel).reshape(n, (h + 1) // 2, (w + 1) // 2, 4, -1)
    quads = [[y[:, :, :, 2 * i + j] for j in (0, 1)] for i in (0, 1)]
    return block_forms.norm_pool((h, w), eps, quads, scale, bias)


@jax.custom_vjp
def _conv(images: Array, kernel: Array) -> Array:
    """`native.conv_forward` with derivatives."""
    return native.conv_forward(images, kernel)


@jax.custom_vjp
def _gradients(images: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    """`native.conv_backward` with derivatives."""
    return native.conv_backward(images, kernel, gradient)


def _gradients_backward(saved: Arrays, cotangents: tuple[Array, Array]) -> Arrays:
    # d_images is bilinear in the kernel and the gradient, d_kernel in the images and the gradient.
    images, kernel, gradient = saved
    by_images, by_kernel = _gradients(*cotangents, gradient)
    return by_images, by_kernel, _conv(cotangents[0], kernel) + _conv(images, cotangents[1])


_conv.defvjp(
    lambda images, kernel: (_conv(images, kernel), (images, kernel)),
    lambda saved, gradient: _gradients(*saved, gradient),
)
_gradients.defvjp(lambda *args: (_gradients(*args), args), _gradients_backward)
