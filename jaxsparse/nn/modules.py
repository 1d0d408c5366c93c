"""The networks as flax.nnx modules."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxsparse.nn import ops
from jaxsparse.nn.blocks import conv_norm_pool
from jaxsparse.nn.model import ZERO, Draw, Moments, Shape, Spread
from jaxsparse.nn.residual import conv_norm, join

INITS = ("pytorch", "kaiming", "xavier")
_SLOPE = 0.01  # ResNet-12's leaky ReLU


def _spreads(init: str, fan_in: int, fan_out: int) -> tuple[Spread, Spread]:
    """The initial distributions of a layer's kernel and bias."""
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
    """Batch norm with the statistics of the current batch, unless `moments` says otherwise."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))

    def __call__(self, x: Array, moments: Moments | None = None) -> Array:
        if moments is None:
            return ops.batch_norm(x, self.scale[...], self.bias[...])
        return ops.normalise(x, *moments.of(x), self.scale[...], self.bias[...])


class Linear(nnx.Module):
    """A linear layer."""

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
        """The outputs, given the products of the input and the kernel."""
        return products if self.bias is None else products + ops.of_rank(2, self.bias[...])


class Conv4(nnx.Module):
    """Four blocks of convolution, batch norm, ReLU and pooling, then a linear head."""

    def __init__(
        self, ways: int, width: int, image_shape: Shape, use_bias: bool, form: str, draw: Draw
    ):
        h, w, c = image_shape
        self.form = form
        for i in range(1, 5):
            setattr(self, f"conv{i}", Conv(c if i == 1 else width, width, use_bias, draw=draw))
            setattr(self, f"norm{i}", BatchNorm(width))
        self.head = Linear((h // 16) * (w // 16) * width, ways, use_bias, draw=draw)

    def __call__(self, x: Array, moments: Moments | None = None) -> Array:
        for i in range(1, 5):
            conv, norm = getattr(self, f"conv{i}"), getattr(self, f"norm{i}")
            # The bias of the convolution is not used: the norm subtracts any constant, so neither
            # the logits nor their derivatives depend on it, and its gradient is exactly zero.
            if moments is not None:
                x = ops.max_pool(nnx.relu(norm(ops.conv(x, conv.kernel[...]), moments)))
                continue
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
        """The logits, given the products of the input and the first kernel."""
        first, *others = self._layers()
        x = first.shifted(x)
        for layer in others:
            x = layer(nnx.relu(x))
        return x

    def _layers(self) -> list[Linear]:
        return [getattr(self, f"dense{i + 1}") for i in range(self.depth)] + [self.head]


class StridedCNN(MLP):
    """Convolutions with stride 2, each followed by ReLU, then a multi-layer perceptron."""

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
    """A convolution without bias, batch norm and leaky ReLU; a slope of 1 means no activation."""

    def __init__(self, size: int, inputs: int, features: int, form: str, *, draw: Draw):
        bound = math.sqrt(6 / (size * size * (inputs + features)))
        self.form = form
        self.kernel = nnx.Param(draw((size, size, inputs, features), Spread(bound)))
        self.norm = BatchNorm(features)

    def __call__(self, x: Array, slope: float = 1.0, moments: Moments | None = None) -> Array:
        if moments is not None:
            y = self.norm(ops.conv(x, self.kernel[...]), moments)
            return y if slope == 1 else nnx.leaky_relu(y, slope)
        params = (self.kernel[...], self.norm.scale[...], self.norm.bias[...])
        return conv_norm(x, *params, slope=slope, form=self.form)


class Residual(nnx.Module):
    """Three convolutions and a 1x1 skip connection; the last activation is after the sum."""

    def __init__(self, inputs: int, features: int, form: str, *, draw: Draw):
        self.form = form
        self.conv1 = ResidualConv(3, inputs, features, form, draw=draw)
        self.conv2 = ResidualConv(3, features, features, form, draw=draw)
        self.conv3 = ResidualConv(3, features, features, form, draw=draw)
        self.skip = ResidualConv(1, inputs, features, form, draw=draw)

    def __call__(self, x: Array, moments: Moments | None = None) -> Array:
        a, b = self._branches(x, moments)
        return nnx.leaky_relu(a + b, _SLOPE)

    def pooled(self, x: Array, moments: Moments | None = None, padding: int = 0) -> Array:
        """The output of the block after 2x2 max-pooling."""
        form = self.form if moments is None else "xla"
        branches = self._branches(x, moments)
        return join(*branches, slope=_SLOPE, padding=padding, form=form)

    def _branches(self, x: Array, moments: Moments | None) -> tuple[Array, Array]:
        """The convolutions and the skip connection, whose norms use `moments` in this order."""
        y = self.conv1(x, _SLOPE, moments)
        y = self.conv2(y, _SLOPE, moments)
        return self.conv3(y, moments=moments), self.skip(x, moments=moments)


class ResNet12(nnx.Module):
    """Four residual blocks with max-pooling after the first three, mean pooling, a linear head."""

    def __init__(
        self,
        ways: int,
        channels: Sequence[int],
        image_shape: Shape,
        use_bias: bool,
        form: str,
        draw: Draw,
    ):
        inputs = (image_shape[2], *channels)
        self.block1 = Residual(inputs[0], inputs[1], form, draw=draw)
        self.block2 = Residual(inputs[1], inputs[2], form, draw=draw)
        self.block3 = Residual(inputs[2], inputs[3], form, draw=draw)
        self.block4 = Residual(inputs[3], inputs[4], form, draw=draw)
        self.head = Linear(channels[3], ways, use_bias, init="xavier", draw=draw)

    def __call__(self, x: Array, moments: Moments | None = None) -> Array:
        x = self.block1.pooled(x, moments)
        x = self.block2.pooled(x, moments)
        x = self.block3.pooled(x, moments, padding=1)
        x = self.block4(x, moments)
        return self.head(jnp.mean(x, (1, 2), dtype=jnp.float32).astype(x.dtype))
