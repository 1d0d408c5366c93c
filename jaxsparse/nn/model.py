"""A network as a pair of pure functions on a plain dict, built from a flax.nnx module."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxsparse.checks import described, is_array, leaf_names, leaves_by_name
from jaxsparse.draws import draw_each, uniform
from jaxsparse.nn import ops
from jaxsparse.nn.direct import Prepared, plain
from jaxsparse.precision import float32_by_default

Params = dict[str, Any]
Shape = tuple[int, int, int]


class Model(NamedTuple):
    """A network as two pure functions on a plain nested dict of arrays.

    Attributes:
      init: key -> params, float32.
      apply: (params, images float [n, h, w, c]) -> logits [n, ways], in the dtype of params.
      input_layer: the first layer, if it is linear; None if it is not linear or not known.
      rowwise: True if the logits of an image depend on that image alone; False with batch norm,
        which uses statistics of the batch; None if not known.
      with_moments: (params, images, given) -> (logits, moments): a forward pass whose batch norms
        use the list of `Moment` `given`, or those of the batch if it is None, and return the latter
        as `moments`. None if the network has no batch norm.
      prepare: images -> the same with what does not depend on the parameters computed, which
        `apply` takes instead of the images. An inner loop calls it once. None if there is nothing
        to compute.

    Examples:
      >>> model = jaxsparse.nn.mlp(ways=5)
      >>> model.apply(model.init(jax.random.key(0)), jnp.zeros((3, 28, 28, 1))).shape
      (3, 5)
    """

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]
    input_layer: "InputLayer | None" = None
    rowwise: bool | None = None
    with_moments: Callable[[Params, Array, Any], tuple[Array, Any]] | None = None
    prepare: Callable[[Array], Any] | None = None


class Moment(NamedTuple):
    """The statistics of one batch norm.

    Attributes:
      mean: float32 [c].
      variance: float32 [c], biased.
      entries: float32, the number of entries that each mean is over.
    """

    mean: Array
    variance: Array
    entries: Array


def is_norm(name: str) -> bool:
    """Whether a parameter is a batch norm's, by its path, such as "block1/conv1/norm/scale"."""
    return any(part.startswith("norm") for part in name.split("/"))


class Moments:
    """The means and variances of the batch norms of one forward pass, in their order.

    Args:
      given: those to normalise by; None: those of the batch.
    """

    def __init__(self, given: Sequence[Moment] | None = None):
        self._given = None if given is None else iter(given)
        self.seen: list[Moment] = []

    def of(self, x: Array) -> tuple[Array, Array]:
        """The mean and variance that the next batch norm normalises x [..., c] by."""
        if self._given is not None:
            mean, variance, _ = next(self._given)
            return mean, variance
        mean, variance = ops.moments(x)
        self.seen.append(Moment(mean, variance, jnp.float32(x.size // x.shape[-1])))
        return mean, variance


class InputLayer(NamedTuple):
    """A network split after its first matrix product.

    model.apply(params, images) = apply(params, inputs(images) @ kernel)

    Args:
      kernel: the path of the kernel [in, out] in params, such as "dense1/kernel". The network does
        not use it elsewhere.
      inputs: images [n, h, w, c] -> [n, in], one row per image.
      apply: (params, products [n, out]) -> logits [n, ways].

    Examples:
      >>> model = jaxsparse.nn.mlp(ways=5)
      >>> params, images = model.init(jax.random.key(0)), jnp.zeros((3, 28, 28, 1))
      >>> products = model.input_layer.inputs(images) @ params["dense1"]["kernel"]
      >>> model.input_layer.apply(params, products).shape
      (3, 5)
    """

    kernel: str
    inputs: Callable[[Array], Array]
    apply: Callable[[Params, Array], Array]


class Spread(NamedTuple):
    """A float32 distribution around zero: uniform in +-scale, or normal with deviation `scale`."""

    scale: float
    normal: bool = False


ZERO = Spread(0.0)

# (shape, spread) -> float32 values. A module calls it in a fixed order.
Draw = Callable[[tuple[int, ...], Spread], Array]


def make_model(
    build: Callable[[Draw], nnx.Module],
    image_shape: Shape,
    first: str | None = None,
    *,
    rowwise: bool,
) -> Model:
    """A `Model` from a module; `first` names its first layer if it has `after_products`.

    A module that is not rowwise is called with `Moments` as its second argument, too.
    """
    asked: list[tuple[tuple[int, ...], Spread]] = []

    def note(shape: tuple[int, ...], spread: Spread) -> Array:
        asked.append((shape, spread))
        return jnp.zeros(shape, jnp.float32)

    # The structure of the module is fixed here, once; `apply` only fills in the arrays.
    graph, state = nnx.split(nnx.eval_shape(lambda: build(note)))
    wanted = nnx.to_pure_dict(state)

    def init(key: Array) -> Params:
        # One key per tensor, as with nnx.Rngs; drawn together, which compiles faster.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(asked)))
        values = iter(draw_each(_drawn, keys, asked))
        return nnx.to_pure_dict(nnx.state(build(lambda shape, spread: next(values))))

    @float32_by_default
    def apply(params: Params, images: Array | Prepared, *moments: Moments) -> Array:
        check_images(plain(images), image_shape)
        params = fitted(params, wanted)
        module = nnx.merge(graph, params)
        dtype = params["head"]["kernel"].dtype
        if moments or dtype != jnp.float32:
            images = plain(images)  # what was prepared is not used, or not of rounded images
        cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), images)
        return module(cast, *moments)

    def with_moments(params: Params, images: Array, given: Any = None) -> tuple[Array, Any]:
        moments = Moments(given)
        return apply(params, images, moments), moments.seen

    if first is None:
        return Model(init, apply, None, rowwise, None if rowwise else with_moments)

    def inputs(images: Array) -> Array:
        check_images(images, image_shape)
        return images.reshape(images.shape[0], -1)

    @float32_by_default
    def after_products(params: Params, products: Array) -> Array:
        module: Any = nnx.merge(graph, params)
        return module.after_products(products)

    layer = InputLayer(f"{first}/kernel", inputs, after_products)
    return Model(init, apply, layer, rowwise)


def fitted(params: Any, wanted: Params) -> Params:
    """`params`, any mapping, as a dict like `wanted`; ValueError if names or shapes differ.

    The leaves become arrays of JAX: NumPy's float64 is none of its dtypes without x64.
    """
    leaves, names = leaves_by_name(params), leaf_names(wanted)
    if sorted(leaves) != sorted(names):
        got = ", ".join(leaves) or described(params)
        raise ValueError(f"params must have the leaves of this network: got {got}, want {names}")
    for name, spec in zip(names, jax.tree.leaves(wanted), strict=True):
        shape = np.shape(leaves[name])
        if shape != spec.shape:
            raise ValueError(f"params[{name}] has shape {shape}, this network has {spec.shape}")
    arrays = [jnp.asarray(leaves[name]) for name in names]
    return jax.tree.unflatten(jax.tree.structure(wanted), arrays)


def check_images(images: Array, image_shape: Shape) -> None:
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
    # Drawn as a vector, which compiles faster; see `uniform`.
    flat = scale * jax.random.normal(key, (math.prod(shape),), jnp.float32)
    return jax.lax.optimization_barrier(flat.reshape(shape))
