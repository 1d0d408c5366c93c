"""The networks: Conv4, a multi-layer perceptron, strided convolutions, ResNet-12."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsparse.checks import check_scale
from jaxsparse.nn.blocks import Blocks, choose_blocks
from jaxsparse.nn.model import Model, Params, Shape, make_model
from jaxsparse.nn.modules import INITS, MLP, Conv4, ResNet12, StridedCNN


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
    return make_model(
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
    return make_model(
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
    return make_model(
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
    blocks: Blocks = "auto",
) -> Model:
    """Build ResNet-12: four residual blocks of three convolutions, then mean and linear head.

    2x2 max-pooling follows the first three blocks (the third with padding 1). The statistics of the
    batch norm are those of the batch at hand; leaky ReLU with slope 0.01. Kernels Xavier-uniform.

    Args:
      ways: number of classes.
      channels: of the four blocks; (64, 160, 320, 640) is the large network of the literature.
      image_shape: (h, w, c) in pixels and channels; h, w >= 8.
      blocks: what computes the convolutions with their norms, as for `conv4`.

    Returns:
      A `Model` with params {"block1": {"conv1": {"kernel", "norm": {"scale", "bias"}}, "conv2",
      "conv3", "skip"}, ..., "block4", "head": {"kernel": [channels[3], ways], "bias": [ways]}}.

    Raises:
      ValueError: for sizes that are not positive, other than four channel counts, or blocks that
        are unknown or cannot be had.

    Example:
      >>> model = resnet12(ways=5, channels=(2, 4, 4, 8), image_shape=(16, 16, 3))
      >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((3, 16, 16, 3))).shape
      (3, 5)

    Source: Oreshkin et al., TADAM, 2018; von Oswald et al., Learning where to learn, 2021, App. B.
    """
    _positive(ways=ways, channels=tuple(channels), image_shape=image_shape)
    if len(channels) != 4 or min(image_shape[:2]) < 8:
        raise ValueError(f"channels: got {channels}, want four, on images of at least 8x8 pixels")
    form = choose_blocks(blocks)
    return make_model(
        lambda draw: ResNet12(ways, channels, image_shape, form, draw), image_shape, rowwise=False
    )
