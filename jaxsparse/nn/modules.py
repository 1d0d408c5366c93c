"""The networks as flax.nnx modules."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxsparse.nn import ops
from jaxsparse.nn.blocks import conv_norm_pool
from jaxsparse.nn.model import ZERO, Draw, Shape, Spread
from jaxsparse.nn.residual import conv_norm, join

INITS = ("pytorch", "kaiming", "xavier")
_SLOPE = 0.01  # of ResNet-12's leaky ReLU


def _spreads(init: str, fan_in: int, fan_out: int) -> tuple[Spread, Spread]:
    """How a layer's kernel and bias are drawn."""
    if init == "kaiming":
        return Spread(math.sqrt(2 / fan_in), normal=True), ZERO
    if init == "xavier":
        return Spread(math.sqrt(6 / (fan_in + fan_out))), ZERO
    return Spread(1 / math.sqrt(fan_in)), Spread(1 / math.sqrt(fan_in))


class Conv(nnx.Module):
    """A 3x3 convolution's parameters."""

    def __init__(
        self, inputs: int, features: int, use_bias: bool, *, init: str = "pytorch", draw: Draw
    ):
        kernel, bias = _spreads(init, 9 * inputs, 9 * features)
        self.kernel = nnx.Param(draw((3, 3, inputs, features), kernel))
        if use_bias:
            self.bias = nnx.Param(draw((features,), bias))


class BatchNorm(nnx.Module):
    """Normalisation by the batch at hand; no running statistics."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return ops.batch_norm(x, self.scale[...], self.bias[...])


class Linear(nnx.Module):
    """An affine map, or a linear one."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        use_bias: bool = True,
        *,
        init: str = "pytorch",
        draw: Draw,
    ):
        kernel, bias = _spreads(init, inputs, outputs)
        self.kernel = nnx.Param(draw((inputs, outputs), kernel))
        self.bias = nnx.Param(draw((outputs,), bias)) if use_bias else None

    def __call__(self, x: Array) -> Array:
        return self.shifted(x @ self.kernel[...])

    def shifted(self, products: Array) -> Array:
        """The outputs, from the products of the input and the kernel."""
        return products if self.bias is None else products + ops.of_rank(2, self.bias[...])


class Conv4(nnx.Module):
    """Four blocks of convolution, batch norm, ReLU and pooling, then a linear head."""

    def __init__(
        self, ways: int, width: int, image_shape: Shape, use_bias: bool, form: str, draw: Draw
    ):
        h, w, c = image_shape
        self.form = form  # of the blocks
        for i in range(1, 5):
            setattr(self, f"conv{i}", Conv(c if i == 1 else width, width, use_bias, draw=draw))
            setattr(self, f"norm{i}", BatchNorm(width))
        self.head = Linear((h // 16) * (w // 16) * width, ways, use_bias, draw=draw)

    def __call__(self, x: Array) -> Array:
        for i in range(1, 5):
            conv, norm = getattr(self, f"conv{i}"), getattr(self, f"norm{i}")
            # The bias of the convolution is left out: the norm subtracts any constant, so neither
            # the logits nor any derivative depends on it, and its gradient is exactly zero.
            params = (conv.kernel[...], norm.scale[...], norm.bias[...])
            x = conv_norm_pool(x, *params, form=self.form)
        return self.head(x.reshape(x.shape[0], -1))


class MLP(nnx.Module):
    """Linear layers with ReLU between them, on the flattened input."""

    def __init__(self, ways: int, inputs: int, hidden: Sequence[int], init: str, draw: Draw):
        sizes = (inputs, *hidden)
        self.depth = len(hidden)
        for i in range(self.depth):
            dense = Linear(sizes[i], sizes[i + 1], init=init, draw=draw)
            setattr(self, f"dense{i + 1}", dense)
        self.head = Linear(sizes[-1], ways, init=init, draw=draw)

    def __call__(self, x: Array) -> Array:
        first = self._layers()[0]
        return self.after_products(x.reshape(x.shape[0], -1) @ first.kernel[...])

    def after_products(self, x: Array) -> Array:
        """The logits, from the products of the input and the first kernel."""
        first, *others = self._layers()
        x = first.shifted(x)
        for layer in others:
            x = layer(nnx.relu(x))
        return x

    def _layers(self) -> list[Linear]:
        return [getattr(self, f"dense{i + 1}") for i in range(self.depth)] + [self.head]


class StridedCNN(MLP):
    """Convolutions of stride 2 with ReLU after each, then a multi-layer perceptron."""

    def __init__(
        self,
        ways: int,
        channels: int,
        layers: int,
        hidden: Sequence[int],
        image_shape: Shape,
        init: str,
        draw: Draw,
    ):
        h, w, c = image_shape
        self.layers = layers
        for i in range(layers):
            conv = Conv(channels if i else c, channels, True, init=init, draw=draw)
            setattr(self, f"conv{i + 1}", conv)
            h, w = (h + 1) // 2, (w + 1) // 2
        super().__init__(ways, h * w * channels, hidden, init, draw)

    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            conv = getattr(self, f"conv{i + 1}")
            x = ops.conv(x, conv.kernel[...], stride=2) + ops.of_rank(4, conv.bias[...])
            x = nnx.relu(x)
        return super().__call__(x)


class ResidualConv(nnx.Module):
    """Convolution without bias, Xavier-uniform, then batch norm and a leaky ReLU."""

    def __init__(self, size: int, inputs: int, features: int, form: str, *, draw: Draw):
        bound = math.sqrt(6 / (size * size * (inputs + features)))
        self.form = form
        self.kernel = nnx.Param(draw((size, size, inputs, features), Spread(bound)))
        self.norm = BatchNorm(features)

    def __call__(self, x: Array, slope: float = 1.0) -> Array:
        params = (self.kernel[...], self.norm.scale[...], self.norm.bias[...])
        return conv_norm(x, *params, slope=slope, form=self.form)


class Residual(nnx.Module):
    """Three convolutions and a 1x1 skip; the last activation follows the sum."""

    def __init__(self, inputs: int, features: int, form: str, *, draw: Draw):
        self.form = form
        self.conv1 = ResidualConv(3, inputs, features, form, draw=draw)
        self.conv2 = ResidualConv(3, features, features, form, draw=draw)
        self.conv3 = ResidualConv(3, features, features, form, draw=draw)
        self.skip = ResidualConv(1, inputs, features, form, draw=draw)

    def __call__(self, x: Array) -> Array:
        return nnx.leaky_relu(self._residual(x) + self.skip(x), _SLOPE)

    def pooled(self, x: Array, padding: int = 0) -> Array:
        """The block's output after a max-pool."""
        terms = self._residual(x), self.skip(x)
        return join(*terms, slope=_SLOPE, padding=padding, form=self.form)

    def _residual(self, x: Array) -> Array:
        return self.conv3(self.conv2(self.conv1(x, _SLOPE), _SLOPE))


class ResNet12(nnx.Module):
    """Four residual blocks, pooled after the first three, and a linear head on the mean."""

    def __init__(
        self, ways: int, channels: Sequence[int], image_shape: Shape, form: str, draw: Draw
    ):
        inputs = (image_shape[2], *channels)
        self.block1 = Residual(inputs[0], inputs[1], form, draw=draw)
        self.block2 = Residual(inputs[1], inputs[2], form, draw=draw)
        self.block3 = Residual(inputs[2], inputs[3], form, draw=draw)
        self.block4 = Residual(inputs[3], inputs[4], form, draw=draw)
        self.head = Linear(channels[3], ways, init="xavier", draw=draw)

    def __call__(self, x: Array) -> Array:
        x = self.block1.pooled(x)
        x = self.block2.pooled(x)
        x = self.block3.pooled(x, padding=1)
        x = self.block4(x)
        return self.head(jnp.mean(x, (1, 2), dtype=jnp.float32).astype(x.dtype))
