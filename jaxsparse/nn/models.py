"""The networks: Conv4, a multi-layer perceptron, strided convolutions, ResNet-12."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsparse.checks import check_scale
from jaxsparse.nn.blocks import Blocks, choose_blocks, prepare
from jaxsparse.nn.direct import Prepared
from jaxsparse.nn.model import Model, Shape, check_images, make_model
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
    """Build Conv4: four blocks of convolution, batch norm, ReLU and max-pool, then a linear head.

    Batch norm always uses the statistics of the current batch. The initialisation is that of
    PyTorch's layers: U(-1, 1) / sqrt(fan_in) for kernels and biases, scale 1 and bias 0 for norms.

    Args:
      ways: number of classes.
      width: channels of every convolution.
      image_shape: (h, w, c) in pixels and channels; h, w >= 16.
      use_bias: True if convolutions and head have biases. Batch norm cancels the biases of the
        convolutions, so their gradients are zero. They exist to be counted and masked as in the
        literature. The norms always have biases.
      blocks: the implementation of the blocks, chosen once, here. "native" is C++, compiled for
        this processor at first use (about ten seconds, announced on stderr). "pallas" has a kernel
        in Pallas for the first block on NVIDIA GPUs; "native", too, if it is used there. "xla" uses
        only XLA's operations and also works with `jax.export`. "auto" is "native" if JAX's default
        device is the CPU and a C++ compiler works, "pallas" if it is an NVIDIA GPU (Ampere or
        later), else "xla". The results differ by rounding.

    Returns:
      A `Model` with params {"conv1": {"kernel": [3, 3, c, width], "bias": [width]},
      "norm1": {"scale": [width], "bias": [width]}, ..., "norm4",
      "head": {"kernel": [(h // 16) (w // 16) width, ways], "bias": [ways]}}. If use_bias is False,
      convolutions and head have no "bias".

    Raises:
      ValueError: a size is not positive, the images are too small to be pooled four times, or
        `blocks` is unknown or not available.

    Examples:
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
    model = make_model(
        lambda draw: Conv4(ways, width, image_shape, use_bias, form, draw),
        image_shape,
        rowwise=False,
    )

    def prepared(images: Array) -> Array | Prepared:
        check_images(images, image_shape)
        return prepare(jnp.asarray(images), (3, 3, image_shape[2], width), form)

    return model._replace(prepare=prepared)


def mlp(
    ways: int,
    hidden: Sequence[int] = (100, 100),
    image_shape: Shape = (28, 28, 1),
    init: str = "pytorch",
) -> Model:
    """Build a multi-layer perceptron: linear layers with ReLU between them, on the flattened image.

    | init | kernels (also the head's) | biases |
    |---|---|---|
    | "pytorch" | U(-1, 1) / sqrt(fan_in) | U(-1, 1) / sqrt(fan_in) |
    | "kaiming" | N(0, 2 / fan_in) | 0 |
    | "xavier" | U(-1, 1) sqrt(6 / (fan_in + fan_out)) | 0 |

    Args:
      ways: number of classes.
      hidden: units of each hidden layer.
      image_shape: (h, w, c) in pixels and channels.
      init: the initialisation, see the table.

    Returns:
      A `Model` with params {"dense1": {"kernel": [h w c, hidden[0]], "bias": [hidden[0]]}, ...,
      "head": {"kernel": [hidden[-1], ways], "bias": [ways]}}.

    Raises:
      ValueError: a size is not positive, or `init` is unknown.

    Examples:
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
    """Build a network of 3x3 convolutions with stride 2 and linear layers, with ReLU between them.

    There is no norm and no pooling. Every convolution has padding 1 and halves the image, rounding
    up. La-MAML's network for CIFAR-100 is `layers=3, hidden=(320, 320)`.

    Args:
      ways: number of classes.
      channels: channels of every convolution.
      layers: number of convolutions.
      hidden: units of each hidden linear layer.
      image_shape: (h, w, c) in pixels and channels.
      init: the initialisation, see `mlp`. The fans of a convolution are 9 times its channels.

    Returns:
      A `Model` with params {"conv1": {"kernel": [3, 3, c, channels], "bias": [channels]}, ...,
      "dense1": {"kernel", "bias"}, ..., "head": {"kernel": [hidden[-1], ways], "bias": [ways]}}.

    Raises:
      ValueError: a size is not positive, or `init` is unknown.

    Examples:
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
    """Add input normalisation to a model; its images then have pixels from 0 to 255.

    apply(params, images) = model.apply(params, (images / 255 - mean) / std)

    Args:
      model: a `Model` for images [n, h, w, c].
      mean: one number per channel, for pixels in [0, 1].
      std: one number per channel, for pixels in [0, 1]; not 0.

    Returns:
      A `Model` with the params of `model`, for uint8 or float images.

    Raises:
      ValueError: mean and std have different lengths, an entry is not finite, or std contains 0.
        From `apply`: the images have another number of channels.

    Examples:
      >>> model = normalised(mlp(ways=10), mean=(0.0,), std=(1.0,))
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jnp.zeros((3, 28, 28, 1), jnp.uint8)).shape
      (3, 10)
    """
    channels = max(len(mean), len(std), 1)
    check_scale("mean", mean, channels)
    check_scale("std", std, channels, zero=False)

    def normalise(images: Any) -> Any:
        if isinstance(images, Prepared):  # from `prepare`, which has normalised them
            return images
        if images.ndim != 4 or images.shape[-1] != len(mean):
            raise ValueError(f"images: got shape {images.shape}, want [n, h, w, {len(mean)}]")
        shape = (1, 1, 1, -1)
        centre, scale = (jnp.array(x, jnp.float32).reshape(shape) for x in (mean, std))
        return (images.astype(jnp.float32) / 255 - centre) / scale

    layer, inner = model.input_layer, model.with_moments
    if layer is not None:
        inputs = layer.inputs
        layer = layer._replace(inputs=lambda images: inputs(normalise(images)))
    with_moments = inner and (lambda params, x, given: inner(params, normalise(x), given))
    prepared = model.prepare
    prepare = prepared and (lambda images: prepared(normalise(images)))
    return Model(
        model.init,
        lambda params, images: model.apply(params, normalise(images)),
        layer,
        model.rowwise,
        with_moments,
        prepare,
    )


def resnet12(
    ways: int = 5,
    channels: Sequence[int] = (64, 128, 256, 512),
    image_shape: Shape = (84, 84, 3),
    use_bias: bool = True,
    blocks: Blocks = "auto",
) -> Model:
    """Build ResNet-12: four residual blocks of three convolutions, mean pooling, a linear head.

    2x2 max-pooling follows the first three blocks (the third with padding 1). Batch norm always
    uses the statistics of the current batch. Leaky ReLU has slope 0.01. Kernels are Xavier-uniform.

    Args:
      ways: number of classes.
      channels: channels of the four blocks; (64, 160, 320, 640) is the literature's large network.
      image_shape: (h, w, c) in pixels and channels; h, w >= 8.
      use_bias: True if the head has a bias. The convolutions never have one.
      blocks: the implementation of convolutions, norms and pooling, as in `conv4`.

    Returns:
      A `Model` with params {"block1": {"conv1": {"kernel", "norm": {"scale", "bias"}}, "conv2",
      "conv3", "skip"}, ..., "block4", "head": {"kernel": [channels[3], ways], "bias": [ways]}}.
      If use_bias is False, the head has no "bias".

    Raises:
      ValueError: a size is not positive, `channels` has not four entries, the images are too small,
        or `blocks` is unknown or not available.

    Examples:
      >>> model = resnet12(ways=5, channels=(2, 4, 4, 8), image_shape=(16, 16, 3))
      >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((3, 16, 16, 3))).shape
      (3, 5)

    Source: Oreshkin et al., TADAM, 2018; von Oswald et al., Learning where to learn, 2021, App. B.
    """
    _positive(ways=ways, channels=tuple(channels), image_shape=image_shape)
    if len(channels) != 4:
        raise ValueError(f"channels: got {channels}, want four")
    if len(image_shape) != 3 or min(image_shape[:2]) < 8:
        raise ValueError(f"image_shape: got {image_shape}, want (h, w, c) with h, w >= 8")
    form = choose_blocks(blocks)
    form = "xla" if form == "pallas" else form  # its layers have no kernel in Pallas
    return make_model(
        lambda draw: ResNet12(ways, channels, image_shape, use_bias, form, draw),
        image_shape,
        rowwise=False,
    )
