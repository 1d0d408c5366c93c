"""The networks: flax.nnx modules, handed to the core as a pair of functions on a plain dict."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxsparse.nn import ops

Params = dict[str, Any]


class Model(NamedTuple):
    """A network as two pure functions, `init(key) -> params` and `apply(params, images) -> logits`."""

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]


def _torch_uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    bound = 1 / math.sqrt(fan_in)
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))


class Conv(nnx.Module):
    def __init__(self, inputs: int, features: int, use_bias: bool, rngs: nnx.Rngs):
        self.kernel = _torch_uniform(rngs, (3, 3, inputs, features), 9 * inputs)
        if use_bias:
            self.bias = _torch_uniform(rngs, (features,), 9 * inputs)
        self.use_bias = use_bias

    def __call__(self, x: Array) -> Array:
        y = ops.conv(x, self.kernel[...])
        return y + self.bias[...] if self.use_bias else y


class BatchNorm(nnx.Module):
    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        return ops.batch_norm(x, self.scale[...], self.bias[...])


class Linear(nnx.Module):
    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.kernel = _torch_uniform(rngs, (inputs, outputs), inputs)
        self.bias = _torch_uniform(rngs, (outputs,), inputs)

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...] + self.bias[...]


class Conv4(nnx.Module):
    def __init__(
        self,
        ways: int,
        width: int,
        image_shape: tuple[int, int, int],
        use_bias: bool,
        *,
        rngs: nnx.Rngs,
    ):
        h, w, c = image_shape
        self.conv1 = Conv(c, width, use_bias, rngs)
        self.norm1 = BatchNorm(width)
        self.conv2 = Conv(width, width, use_bias, rngs)
        self.norm2 = BatchNorm(width)
        self.conv3 = Conv(width, width, use_bias, rngs)
        self.norm3 = BatchNorm(width)
        self.conv4 = Conv(width, width, use_bias, rngs)
        self.norm4 = BatchNorm(width)
        self.head = Linear((h // 16) * (w // 16) * width, ways, rngs)

    def __call__(self, x: Array) -> Array:
        x = x.astype(self.head.kernel[...].dtype)
        for i in range(1, 5):
            x = getattr(self, f"conv{i}")(x)
            x = getattr(self, f"norm{i}")(x)
            x = ops.max_pool(nnx.relu(x))
        return self.head(x.reshape(x.shape[0], -1))


class MLP(nnx.Module):
    def __init__(
        self,
        ways: int,
        hidden: tuple[int, ...],
        image_shape: tuple[int, int, int],
        *,
        rngs: nnx.Rngs,
    ):
        sizes = (math.prod(image_shape), *hidden)
        self.depth = len(hidden)
        for i in range(self.depth):
            setattr(self, f"dense{i + 1}", Linear(sizes[i], sizes[i + 1], rngs))
        self.head = Linear(sizes[-1], ways, rngs)

    def __call__(self, x: Array) -> Array:
        x = x.astype(self.head.kernel[...].dtype).reshape(x.shape[0], -1)
        for i in range(self.depth):
            x = nnx.relu(getattr(self, f"dense{i + 1}")(x))
        return self.head(x)


def _model(build: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    graph, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(key: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key))))

    def apply(params: Params, images: Array) -> Array:
        return nnx.merge(graph, params)(images)

    return Model(init, apply)


def conv4(
    ways: int = 5,
    width: int = 64,
    image_shape: tuple[int, int, int] = (84, 84, 3),
    use_bias: bool = True,
) -> Model:
    return _model(lambda rngs: Conv4(ways, width, image_shape, use_bias, rngs=rngs))


def mlp(
    ways: int,
    hidden: tuple[int, ...] = (100, 100),
    image_shape: tuple[int, int, int] = (28, 28, 1),
) -> Model:
    return _model(lambda rngs: MLP(ways, hidden, image_shape, rngs=rngs))
