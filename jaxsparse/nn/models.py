"""The networks: flax.nnx modules, handed to the core as a pair of functions on a plain dict."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxsparse.checks import check_scale, described, is_array, leaf_names, leaves_by_name
from jaxsparse.draws import draw_each, uniform
from jaxsparse.nn import ops
from jaxsparse.nn.blocks import Blocks, choose_blocks, conv_norm_pool
from jaxsparse.precision import float32_by_default

Params = dict[str, Any]
Shape = tuple[int, int, int]


class Model(NamedTuple):
    """A network as two pure functions on a plain nested dict of arrays.

    Args:
      init: key -> params, float32.
      apply: (params, images float [n, h, w, c]) -> logits [n, ways], in the dtype of params.
      input_layer: the first layer, where that is linear; None: no such layer is known.
      rowwise: whether an image's logits depend on that image alone; not with batch norm, whose
        statistics are the batch's. None: not known.

    Example:
      >>> model = mlp(ways=5)
      >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((3, 28, 28, 1))).shape
      (3, 5)
    """

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]
    input_layer: "InputLayer | None" = None
    rowwise: bool | None = None


class InputLayer(NamedTuple):
    """A network cut behind its first products: they are linear in a kernel and in the images.

    model.apply(params, images) = apply(params, inputs(images) @ kernel)

    Args:
      kernel: where the kernel [in, out] lies in params, such as "dense1/kernel"; used nowhere else.
      inputs: images [n, h, w, c] -> [n, in], each row made of its own image.
      apply: (params, products [n, out]) -> logits [n, ways].

    Example:
      >>> model = mlp(ways=5)
      >>> params, images = model.init(jax.random.key(0)), jnp.zeros((3, 28, 28, 1))
      >>> products = model.input_layer.inputs(images) @ params["dense1"]["kernel"]
      >>> model.input_layer.apply(params, products).shape
      (3, 5)
    """

    kernel: str
    inputs: Callable[[Array], Array]
    apply: Callable[[Params, Array], Array]


class Spread(NamedTuple):
    """A distribution around zero, float32: uniform within +-scale, or normal of that deviation."""

    scale: float
    normal: bool = False


ZERO = Spread(0.0)

# (shape, spread) -> float32 values; the modules ask in a fixed order.
Draw = Callable[[tuple[int, ...], Spread], Array]

INITS = ("pytorch", "kaiming", "xavier")


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
    """Convolution without bias, Xavier-uniform, then batch norm."""

    def __init__(self, size: int, inputs: int, features: int, *, draw: Draw):
        bound = math.sqrt(6 / (size * size * (inputs + features)))
        self.kernel = nnx.Param(draw((size, size, inputs, features), Spread(bound)))
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
        self.head = Linear(channels[3], ways, init="xavier", draw=draw)

    def __call__(self, x: Array) -> Array:
        x = ops.max_pool(self.block1(x))
        x = ops.max_pool(self.block2(x))
        x = ops.max_pool(self.block3(x), padding=1)
        x = self.block4(x)
        return self.head(jnp.mean(x, (1, 2), dtype=jnp.float32).astype(x.dtype))


def _model(
    build: Callable[[Draw], nnx.Module],
    image_shape: Shape,
    first: str | None = None,
    *,
    rowwise: bool,
) -> Model:
    """The functions of a module; `first` names its first layer where it has `after_products`."""
    asked: list[tuple[tuple[int, ...], Spread]] = []

    def note(shape: tuple[int, ...], spread: Spread) -> Array:
        asked.append((shape, spread))
        return jnp.zeros(shape, jnp.float32)

    # The structure of the module is fixed here, once; `apply` only fills in the arrays.
    graph, state = nnx.split(nnx.eval_shape(lambda: build(note)))
    wanted = nnx.to_pure_dict(state)

    def init(key: Array) -> Params:
        # One key per tensor, as nnx.Rngs makes them; drawn together, as that compiles faster.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(asked)))
        values = iter(draw_each(_drawn, keys, asked))
        return nnx.to_pure_dict(nnx.state(build(lambda shape, spread: next(values))))

    @float32_by_default
    def apply(params: Params, images: Array) -> Array:
        _check_images(images, image_shape)
        params = _fitted(params, wanted)
        module = nnx.merge(graph, params)
        return module(jnp.asarray(images, params["head"]["kernel"].dtype))

    if first is None:
        return Model(init, apply, rowwise=rowwise)

    def inputs(images: Array) -> Array:
        _check_images(images, image_shape)
        return images.reshape(images.shape[0], -1)

    @float32_by_default
    def after_products(params: Params, products: Array) -> Array:
        module: Any = nnx.merge(graph, params)
        return module.after_products(products)

    layer = InputLayer(f"{first}/kernel", inputs, after_products)
    return Model(init, apply, layer, rowwise)


def _fitted(params: Any, wanted: Params) -> Params:
    """The arrays of any mapping in a dict like `wanted`, whose names and shapes they must have."""
    leaves, names = leaves_by_name(params), leaf_names(wanted)
    if sorted(leaves) != sorted(names):
        got = ", ".join(leaves) or described(params)
        raise ValueError(f"params must have the leaves of this network: got {got}, want {names}")
    for name, spec in zip(names, jax.tree.leaves(wanted), strict=True):
        shape = np.shape(leaves[name])
        if shape != spec.shape:
            raise ValueError(f"params[{name}] has shape {shape}, this network has {spec.shape}")
    return jax.tree.unflatten(jax.tree.structure(wanted), [leaves[name] for name in names])


def _check_images(images: Array, image_shape: Shape) -> None:
    if not is_array(images):
        raise TypeError(f"images: got {described(images)}, want an array [n, *{image_shape}]")
    if images.ndim != 4 or images.shape[1:] != tuple(image_shape):
        raise ValueError(f"images: got shape {images.shape}, want [n, *{image_shape}]")


def _drawn(key: Array, wanted: tuple[tuple[int, ...], Spread]) -> Array:
    shape, (scale, normal) = wanted
    if not scale:
        return jnp.zeros(shape, jnp.float32)
    if not normal:
        return uniform(key, shape, jnp.float32, -scale, scale)
    # Flat for the reason `uniform` is.
    flat = scale * jax.random.normal(key, (math.prod(shape),), jnp.float32)
    return jax.lax.optimization_barrier(flat.reshape(shape))


def _positive(**sizes: Any) -> None:
    for name, value in sizes.items():
        numbers = value if isinstance(value, list | tuple) else (value,)
        if not all(isinstance(x, int | np.integer) and x > 0 for x in numbers):
            raise ValueError(f"{name}: got {value!r}, want positive integers")
        if name == "image_shape" and len(numbers) != 3:
            raise ValueError(f"image_shape: got {value}, want (h, w, c)")


def _check_init(init: str) -> None:
    if init not in INITS:
        raise ValueError(f"init: got {init!r}, want one of {INITS}")


def conv4(
    ways: int = 5,
    width: int = 64,
    image_shape: Shape = (84, 84, 3),
    use_bias: bool = True,
    blocks: Blocks = "auto",
) -> Model:
    """Build Conv4: four blocks of convolution, batch norm, ReLU and max-pool; then a linear head.

    The statistics of the batch norm are those of the batch at hand. Initialised as PyTorch's layers
    are: U(-1, 1) / sqrt(fan_in) for kernels and biases, gains 1 and shifts 0 for the norms.

    Args:
      ways: number of classes.
      width: channels of every convolution.
      image_shape: (h, w, c) in pixels and channels; h, w >= 16.
      use_bias: whether convolutions and head have biases. The norms cancel the convolutions' and
        their gradients are zero; they are there to be counted and masked as in the literature.
        The norms have their shifts in any case.
      blocks: what computes the blocks; it is decided here, once: "native", C++ compiled for this
        machine's processor (at first use, which takes about ten seconds and is said on stderr);
        "xla", XLA's operations, which also run elsewhere: on GPUs, or exported by `jax.export`;
        "auto", "native" where JAX's default device is the CPU and there is a C++ compiler, else
        "xla". Their results differ by rounding.

    Returns:
      A `Model` with params {"conv1": {"kernel": [3, 3, c, width], "bias": [width]},
      "norm1": {"scale": [width], "bias": [width]}, ..., "norm4",
      "head": {"kernel": [(h // 16) (w // 16) width, ways], "bias": [ways]}}, without the biases of
      convolutions and head where use_bias is False.

    Raises:
      ValueError: for sizes that are not positive, images too small to be pooled four times, or
        blocks that are unknown or cannot be had.

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
    form = choose_blocks(blocks)
    return _model(
        lambda draw: Conv4(ways, width, image_shape, use_bias, form, draw),
        image_shape,
        rowwise=False,
    )


def mlp(
    ways: int,
    hidden: Sequence[int] = (100, 100),
    image_shape: Shape = (28, 28, 1),
    init: str = "pytorch",
) -> Model:
    """Build a multi-layer perceptron: linear layers with ReLU between, on the flattened image.

    | init | kernels, the head's too | biases |
    |---|---|---|
    | "pytorch" | U(-1, 1) / sqrt(fan_in) | U(-1, 1) / sqrt(fan_in) |
    | "kaiming" | N(0, 2 / fan_in) | 0 |
    | "xavier" | U(-1, 1) sqrt(6 / (fan_in + fan_out)) | 0 |

    Args:
      ways: number of classes.
      hidden: units of each hidden layer.
      image_shape: (h, w, c) in pixels and channels.
      init: how parameters are drawn, as above.

    Returns:
      A `Model` with params {"dense1": {"kernel": [h w c, hidden[0]], "bias": [hidden[0]]}, ...,
      "head": {"kernel": [hidden[-1], ways], "bias": [ways]}}.

    Raises:
      ValueError: for sizes that are not positive, or an unknown init.

    Example:
      >>> sorted(mlp(ways=2, hidden=(10,)).init(jax.random.key(0)))
      ['dense1', 'head']

    Source: Glorot & Bengio 2010, Eq. 16 (xavier); He et al. 2015, Eq. 10 (kaiming).
    """
    _positive(ways=ways, hidden=tuple(hidden), image_shape=image_shape)
    _check_init(init)
    inputs = math.prod(image_shape)
    first = "dense1" if hidden else "head"
    return _model(
        lambda draw: MLP(ways, inputs, hidden, init, draw), image_shape, first, rowwise=True
    )


def strided_cnn(
    ways: int,
    channels: int = 160,
    layers: int = 4,
    hidden: Sequence[int] = (640, 640),
    image_shape: Shape = (32, 32, 3),
    init: str = "kaiming",
) -> Model:
    """Build a network of 3x3 convolutions of stride 2, then linear layers; ReLU after each.

    No norm and no pooling: every convolution has padding 1 and halves the image, rounding up.
    The form for 100 classes of CIFAR is `layers=3, hidden=(320, 320)`.

    Args:
      ways: number of classes.
      channels: of every convolution.
      layers: number of convolutions.
      hidden: units of each hidden linear layer.
      image_shape: (h, w, c) in pixels and channels.
      init: how parameters are drawn, see `mlp`; the fan of a convolution is 9 channels.

    Returns:
      A `Model` with params {"conv1": {"kernel": [3, 3, c, channels], "bias": [channels]}, ...,
      "dense1": {"kernel", "bias"}, ..., "head": {"kernel": [hidden[-1], ways], "bias": [ways]}}.

    Raises:
      ValueError: for sizes that are not positive, or an unknown init.

    Example:
      >>> params = strided_cnn(ways=10, channels=8, hidden=(16,)).init(jax.random.key(0))
      >>> params["dense1"]["kernel"].shape
      (32, 16)

    Source: Gupta et al. 2020, La-MAML, public code.
    """
    _positive(
        ways=ways, channels=channels, layers=layers, hidden=tuple(hidden), image_shape=image_shape
    )
    _check_init(init)
    return _model(
        lambda draw: StridedCNN(ways, channels, layers, hidden, image_shape, init, draw),
        image_shape,
        rowwise=True,
    )


def normalised(model: Model, mean: Sequence[float], std: Sequence[float]) -> Model:
    """Make a model take images as they are stored, with pixels from 0 to 255.

    apply(params, images) = model.apply(params, (images / 255 - mean) / std)

    Args:
      model: takes images [n, h, w, c].
      mean: one number per channel, on the scale [0, 1].
      std: one number per channel, on the scale [0, 1], above zero.

    Returns:
      A `Model` with the params of `model`, whose images are uint8 or float.

    Raises:
      ValueError: mean and std are not of one length, std is not above zero, or images have another
        number of channels.

    Example:
      >>> model = normalised(mlp(ways=10), mean=(0.0,), std=(1.0,))
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jnp.zeros((3, 28, 28, 1), jnp.uint8)).shape
      (3, 10)
    """
    channels = max(len(mean), len(std), 1)
    check_scale("mean", mean, channels)
    check_scale("std", std, channels, zero=False)

    def normalise(images: Array) -> Array:
        if images.ndim != 4 or images.shape[-1] != len(mean):
            raise ValueError(f"images: got shape {images.shape}, want [n, h, w, {len(mean)}]")
        shape = (1, 1, 1, -1)
        centre, scale = (jnp.array(x, jnp.float32).reshape(shape) for x in (mean, std))
        return (images.astype(jnp.float32) / 255 - centre) / scale

    def apply(params: Params, images: Array) -> Array:
        return model.apply(params, normalise(images))

    if model.input_layer is None:
        return Model(model.init, apply, rowwise=model.rowwise)
    inputs = model.input_layer.inputs
    layer = model.input_layer._replace(inputs=lambda images: inputs(normalise(images)))
    return Model(model.init, apply, layer, model.rowwise)


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
    return _model(
        lambda draw: ResNet12(ways, channels, image_shape, draw), image_shape, rowwise=False
    )
