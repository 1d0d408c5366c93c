"""The networks: flax.nnx modules, handed to the core as a pair of functions on a plain dict."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxsparse.draws import draw_each, uniform
from jaxsparse.nn import blocks, ops

Params = dict[str, Any]
Shape = tuple[int, int, int]


class Model(NamedTuple):
    """A network as two pure functions on a plain nested dict of arrays.

    Args:
      init: key -> params, float32.
      apply: (params, images float [n, h, w, c]) -> logits [n, ways], in the dtype of params.

    Example:
      >>> model = mlp(ways=5)
      >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((3, 28, 28, 1))).shape
      (3, 5)
    """

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]


# (shape, bound) -> float32 values uniform within the bound; the modules ask in a fixed order.
Draw = Callable[[tuple[int, ...], float], Array]


class Conv(nnx.Module):
    """A 3x3 convolution's parameters, initialised as PyTorch's layer is."""

    def __init__(self, inputs: int, features: int, use_bias: bool, *, draw: Draw):
        bound = 1 / math.sqrt(9 * inputs)
        self.kernel = nnx.Param(draw((3, 3, inputs, features), bound))
        if use_bias:
            self.bias = nnx.Param(draw((features,), bound))


class BatchNorm(nnx.Module):
    """Normalisation by the batch at hand; no running statistics."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        return ops.batch_norm(x, self.scale[...], self.bias[...])


class Linear(nnx.Module):
    """An affine map, initialised as PyTorch's layer is, or Xavier-uniform with zero bias."""

    def __init__(self, inputs: int, outputs: int, *, xavier: bool = False, draw: Draw):
        bound = math.sqrt(6 / (inputs + outputs)) if xavier else 1 / math.sqrt(inputs)
        self.kernel = nnx.Param(draw((inputs, outputs), bound))
        self.bias = nnx.Param(draw((outputs,), 0.0 if xavier else bound))

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...] + self.bias[...]


class Conv4(nnx.Module):
    """Four blocks of convolution, batch norm, ReLU and pooling, then a linear head."""

    def __init__(self, ways: int, width: int, image_shape: Shape, use_bias: bool, draw: Draw):
        h, w, c = image_shape
        for i in range(1, 5):
            setattr(self, f"conv{i}", Conv(c if i == 1 else width, width, use_bias, draw=draw))
            setattr(self, f"norm{i}", BatchNorm(width))
        self.head = Linear((h // 16) * (w // 16) * width, ways, draw=draw)

    def __call__(self, x: Array) -> Array:
        for i in range(1, 5):
            conv, norm = getattr(self, f"conv{i}"), getattr(self, f"norm{i}")
            # The bias of the convolution is left out: the norm subtracts any constant, so neither
            # the logits nor any derivative depends on it, and its gradient is exactly zero.
            x = blocks.conv_norm_pool(x, conv.kernel[...], norm.scale[...], norm.bias[...])
        return self.head(x.reshape(x.shape[0], -1))


class MLP(nnx.Module):
    """Linear layers with ReLU between them, on the flattened image."""

    def __init__(self, ways: int, hidden: Sequence[int], image_shape: Shape, draw: Draw):
        sizes = (math.prod(image_shape), *hidden)
        self.depth = len(hidden)
        for i in range(self.depth):
            setattr(self, f"dense{i + 1}", Linear(sizes[i], sizes[i + 1], draw=draw))
        self.head = Linear(sizes[-1], ways, draw=draw)

    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth):
            x = nnx.relu(getattr(self, f"dense{i + 1}")(x))
        return self.head(x)


class ResidualConv(nnx.Module):
    """Convolution without bias, Xavier-uniform, then batch norm."""

    def __init__(self, size: int, inputs: int, features: int, *, draw: Draw):
        bound = math.sqrt(6 / (size * size * (inputs + features)))
        self.kernel = nnx.Param(draw((size, size, inputs, features), bound))
        self.norm = BatchNorm(features)

    def __call__(self, x: Array) -> Array:
        return self.norm(ops.conv(x, self.kernel[...]))


class Residual(nnx.Module):
    """Three convolutions and a 1x1 skip; the last activation follows the sum."""

    def __init__(self, inputs: int, features: int, *, draw: Draw):
        self.conv1 = ResidualConv(3, inputs, features, draw=draw)
        self.conv2 = ResidualConv(3, features, features, draw=draw)
        self.conv3 = ResidualConv(3, features, features, draw=draw)
        self.skip = ResidualConv(1, inputs, features, draw=draw)

    def __call__(self, x: Array) -> Array:
        y = nnx.leaky_relu(self.conv1(x), 0.01)
        y = nnx.leaky_relu(self.conv2(y), 0.01)
        return nnx.leaky_relu(self.conv3(y) + self.skip(x), 0.01)


class ResNet12(nnx.Module):
    """Four residual blocks, pooled after the first three, and a linear head on the mean."""

    def __init__(self, ways: int, channels: Sequence[int], image_shape: Shape, draw: Draw):
        inputs = (image_shape[2], *channels)
        self.block1 = Residual(inputs[0], inputs[1], draw=draw)
        self.block2 = Residual(inputs[1], inputs[2], draw=draw)
        self.block3 = Residual(inputs[2], inputs[3], draw=draw)
        self.block4 = Residual(inputs[3], inputs[4], draw=draw)
        self.head = Linear(channels[3], ways, xavier=True, draw=draw)

    def __call__(self, x: Array) -> Array:
        x = ops.max_pool(self.block1(x))
        x = ops.max_pool(self.block2(x))
        x = ops.max_pool(self.block3(x), padding=1)
        x = self.block4(x)
        return self.head(jnp.mean(x, (1, 2), dtype=jnp.float32).astype(x.dtype))


def _model(build: Callable[[Draw], nnx.Module], image_shape: Shape) -> Model:
    asked: list[tuple[tuple[int, ...], float]] = []

    def note(shape: tuple[int, ...], bound: float) -> Array:
        asked.append((shape, bound))
        return jnp.zeros(shape)

    # The structure of the module is fixed here, once; `apply` only fills in the arrays.
    graph, _ = nnx.split(nnx.eval_shape(lambda: build(note)))

    def init(key: Array) -> Params:
        # One key per tensor, as nnx.Rngs makes them; drawn together, as that compiles faster.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(asked)))
        values = iter(draw_each(_uniform, keys, asked))
        return nnx.to_pure_dict(nnx.state(build(lambda shape, bound: next(values))))

    def apply(params: Params, images: Array) -> Array:
        if images.ndim != 4 or images.shape[1:] != image_shape:
            raise ValueError(f"images: got shape {images.shape}, want [n, *{image_shape}]")
        module = nnx.merge(graph, params)
        return module(images.astype(params["head"]["kernel"].dtype))

    return Model(init, apply)


def _uniform(key: Array, wanted: tuple[tuple[int, ...], float]) -> Array:
    shape, bound = wanted
    return uniform(key, shape, jnp.float32, -bound, bound)


def _positive(**sizes: Any) -> None:
    for name, value in sizes.items():
        if min(value if isinstance(value, Sequence) else (value,), default=1) < 1:
            raise ValueError(f"{name}: got {value}, want positive integers")


def conv4(
    ways: int = 5, width: int = 64, image_shape: Shape = (84, 84, 3), use_bias: bool = True
) -> Model:
    """Build Conv4: four blocks of convolution, batch norm, ReLU and max-pool; then a linear head.

    The statistics of the batch norm are those of the batch at hand. Initialised as PyTorch's layers
    are: U(-1, 1) / sqrt(fan_in) for kernels and biases, gains 1 and shifts 0 for the norms.

    Args:
      ways: number of classes.
      width: channels of every convolution.
      image_shape: (h, w, c) in pixels and channels; h, w >= 16.
      use_bias: whether convolutions have biases. The norm cancels them and their gradients are
        zero; they are there to be counted and masked as in the literature.

    Returns:
      A `Model` with params {"conv1": {"kernel": [3, 3, c, width], "bias": [width]},
      "norm1": {"scale": [width], "bias": [width]}, ..., "norm4",
      "head": {"kernel": [(h // 16) (w // 16) width, ways], "bias": [ways]}}.

    Raises:
      ValueError: for sizes that are not positive, or images too small to be pooled four times.

    Example:
      >>> model = conv4(ways=5, width=8, image_shape=(28, 28, 1))
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jnp.zeros((3, 28, 28, 1))).shape
      (3, 5)

    Source: Vinyals et al., Matching Networks, 2016, Sec. 4.1, as in Finn et al., MAML, 2017.
    """
    _positive(ways=ways, width=width, image_shape=image_shape)
    if min(image_shape[:2]) < 16:
        raise ValueError(f"image_shape: got {image_shape}, want (h, w, c) with h, w >= 16")
    return _model(lambda draw: Conv4(ways, width, image_shape, use_bias, draw), image_shape)


def mlp(ways: int, hidden: Sequence[int] = (100, 100), image_shape: Shape = (28, 28, 1)) -> Model:
    """Build a multi-layer perceptron: linear layers with ReLU between, on the flattened image.

    Args:
      ways: number of classes.
      hidden: units of each hidden layer.
      image_shape: (h, w, c) in pixels and channels.

    Returns:
      A `Model` with params {"dense1": {"kernel": [h w c, hidden[0]], "bias": [hidden[0]]}, ...,
      "head": {"kernel": [hidden[-1], ways], "bias": [ways]}}, initialised as PyTorch's layers are.

    Raises:
      ValueError: for sizes that are not positive.

    Example:
      >>> sorted(mlp(ways=2, hidden=(10,)).init(jax.random.key(0)))
      ['dense1', 'head']
    """
    _positive(ways=ways, hidden=tuple(hidden), image_shape=image_shape)
    return _model(lambda draw: MLP(ways, hidden, image_shape, draw), image_shape)


def resnet12(
    ways: int = 5,
    channels: Sequence[int] = (64, 128, 256, 512),
    image_shape: Shape = (84, 84, 3),
) -> Model:
    """Build ResNet-12: four residual blocks of three convolutions, then mean and linear head.

    2x2 max-pooling follows the first three blocks (the third with padding 1). The statistics of the
    batch norm are those of the batch at hand; leaky ReLU with slope 0.01. Kernels Xavier-uniform.

    Args:
      ways: number of classes.
      channels: of the four blocks; (64, 160, 320, 640) is the large network of the literature.
      image_shape: (h, w, c) in pixels and channels; h, w >= 8.

    Returns:
      A `Model` with params {"block1": {"conv1": {"kernel", "norm": {"scale", "bias"}}, "conv2",
      "conv3", "skip"}, ..., "block4", "head": {"kernel": [channels[3], ways], "bias": [ways]}}.

    Raises:
      ValueError: for sizes that are not positive, or other than four channel counts.

    Example:
      >>> model = resnet12(ways=5, channels=(2, 4, 4, 8), image_shape=(16, 16, 3))
      >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((3, 16, 16, 3))).shape
      (3, 5)

    Source: Oreshkin et al., TADAM, 2018; von Oswald et al., Learning where to learn, 2021, App. B.
    """
    _positive(ways=ways, channels=tuple(channels), image_shape=image_shape)
    if len(channels) != 4 or min(image_shape[:2]) < 8:
        raise ValueError(f"channels: got {channels}, want four, on images of at least 8x8 pixels")
    return _model(lambda draw: ResNet12(ways, channels, image_shape, draw), image_shape)
