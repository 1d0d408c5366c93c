"""Your own networks, written with flax.nnx or flax.linen, as a `Model`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.core import DenyList
from jax import Array

from jaxsparse.checks import check_params, described, is_array
from jaxsparse.clipping import common_dtype
from jaxsparse.nn.model import Model, Params, Shape, check_images, fitted
from jaxsparse.precision import float32_by_default


def from_nnx(
    module: nnx.Module | Callable[..., nnx.Module],
    *,
    use_running_average: bool = False,
    **options: Any,
) -> Model:
    """Make a `Model` from a flax.nnx module.

    The parameters are the module's `nnx.Param`, as a plain nested dict: that of `self.out.kernel`
    has the path "out/kernel". So the gate of ANIL for a last layer `self.out` is
    `gates.head_only(0.1, head="out")`. All else, such as a buffer, is a constant.

    - Batch norms use the statistics of the batch at hand, and nothing is stored from call to call.
      With `use_running_average=True`, they use the averages that the module has now, and these
      never change.
    - Dropout is off: `apply` has no key, and is the same function at every call. A module that
      draws random numbers in some other way draws the same at every call.

    A value that the module's `__call__` gives to a norm or dropout itself has precedence.

    Args:
      module: a module, or a function `(rngs) -> module`, such as its class or a
        `functools.partial` of it. It is called with an array of images, and returns logits.
      use_running_average: see above.
      **options: more arguments for the module's `__call__`, the same at every call.

    Returns:
      A `Model`. `init(key)` calls the function with `nnx.Rngs(key)`; with a module, it returns a
      copy of the parameters that the module had here, whatever the key. `apply` takes images of
      any shape that the module takes. Floating images are cast to the dtype of the parameters,
      others are passed on as they are. `rowwise` is False with batch statistics, else None: set
      it with `model._replace(rowwise=True)` if the logits of an image depend on that image alone.

    Raises:
      TypeError: `module` is neither, or a parameter is not floating.
      ValueError: the module has no parameters.
      TypeError, ValueError: from `apply`: the parameters are not those of this module, or it does
        not return floating logits [n, classes].

    Examples:
      >>> from flax import nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.conv = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
      ...         self.norm = nnx.BatchNorm(8, rngs=rngs)
      ...         self.out = nnx.Linear(14 * 14 * 8, 5, rngs=rngs)
      ...     def __call__(self, x):
      ...         x = nnx.relu(self.norm(self.conv(x)))
      ...         return self.out(x.reshape(len(x), -1))
      >>> model = from_nnx(Net)
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jnp.zeros((3, 28, 28, 1))).shape
      (3, 5)
      >>> loss_fn = jaxsparse.cross_entropy(model)
    """
    build, start = (None, module) if isinstance(module, nnx.Module) else (module, None)
    if start is None:
        kind = build if isinstance(build, type) else type(build)
        if issubclass(kind, linen.Module):
            raise TypeError("module is one of flax.linen; use from_linen")
        start = build(rngs=nnx.Rngs(0)) if callable(build) else None
        if not isinstance(start, nnx.Module):
            got = described(build if start is None else start)
            raise TypeError(f"module must be an nnx.Module or make one from rngs, got {got}")
    parts: Any = nnx.split(start, nnx.Param, ...)
    graph, state, others = parts
    # Plain arrays: the variables of `others` would keep what a call of the module writes.
    given, constants = nnx.to_pure_dict(state), nnx.to_pure_dict(others)
    if not jax.tree.leaves(given):
        raise ValueError(f"module must have an nnx.Param, got {type(start).__name__} without one")
    check_params("module", given)

    def init(key: Array) -> Params:
        if build is None:
            return jax.tree.map(jnp.copy, given)
        return nnx.to_pure_dict(nnx.state(build(rngs=nnx.Rngs(jnp.asarray(key))), nnx.Param))

    def call(params: Params, images: Array) -> Any:
        own: Any = nnx.merge(graph, params, constants)
        modes = {"use_running_average": use_running_average, "deterministic": True}
        own.set_attributes(**modes, raise_if_not_found=False)
        return own(images, **options)

    has_norm = bool(jax.tree.leaves(nnx.state(start, nnx.BatchStat)))
    return _model(init, call, given, has_norm and not use_running_average)


def from_linen(
    module: linen.Module,
    example: Any,
    *,
    variables: Mapping[str, Any] | None = None,
    use_running_average: bool = False,
    **options: Any,
) -> Model:
    """Make a `Model` from a flax.linen module.

    The parameters are the collection "params" of the module's variables, a nested dict. A kernel of
    the layer called "out" has the path "out/kernel", so the gate of ANIL for this last layer is
    `gates.head_only(0.1, head="out")`. Other collections are constants.

    - Batch norms use the statistics of the batch at hand, and nothing is stored from call to call.
      With `use_running_average=True`, they use the averages in `variables`, and these never
      change. If the module itself sets a norm's `use_running_average`, it must set the same: give
      the argument of its `__call__` that decides, such as `from_linen(..., train=True)`.
    - Dropout is off: `apply` has no key, and is the same function at every call.

    Args:
      module: a module that is called with an array of images and returns logits.
      example: images [n, h, w, c], or the shape (h, w, c) of one.
      variables: the module's variables, for example after pretraining; None: `module.init` makes
        them.
      use_running_average: see above.
      **options: more arguments for the module's `__call__`, the same at every call.

    Returns:
      A `Model`. `init(key)` is `module.init` with this key, or a copy of the parameters in
      `variables`, if they are given. `apply` takes images [n, h, w, c] as in `example`. Floating
      images are cast to the dtype of the parameters. `rowwise` is as in `from_nnx`.

    Raises:
      TypeError, ValueError: `module`, `example` or `variables` is not as above; a norm uses other
        statistics than it should; the module does not return floating logits [n, classes].

    Examples:
      >>> from flax import linen
      >>> class Net(linen.Module):
      ...     @linen.compact
      ...     def __call__(self, x, train):
      ...         x = linen.Conv(8, (3, 3), strides=2)(x)
      ...         x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
      ...         return linen.Dense(5, name="out")(x.reshape(len(x), -1))
      >>> model = from_linen(Net(), (28, 28, 1), train=True)
      >>> params = model.init(jax.random.key(0))
      >>> model.apply(params, jnp.zeros((3, 28, 28, 1))).shape
      (3, 5)
    """
    if not isinstance(module, linen.Module):
        raise TypeError(f"module must be a flax.linen.Module, got {described(module)}")
    images = _example(example)

    def made(key: Array) -> Any:
        with _modes(use_running_average):
            return module.init(key, images, **options)

    start = made(jax.random.key(0)) if variables is None else variables
    if variables is None and not start.get("params"):
        raise ValueError(f"module must have parameters, got {type(module).__name__} without any")
    if not isinstance(start, Mapping) or not start.get("params"):
        raise ValueError(f"variables must have a collection 'params', got {described(start)}")
    given, constants = start["params"], {n: v for n, v in start.items() if n != "params"}

    def init(key: Array) -> Params:
        return jax.tree.map(jnp.copy, given) if variables is not None else made(key)["params"]

    def call(params: Params, images: Array) -> Any:
        check_images(images, _shape(example))
        with _modes(use_running_average):
            # What the module writes into other collections is dropped.
            logits, _ = module.apply(
                {"params": params, **constants}, images, mutable=DenyList("params"), **options
            )
        return logits

    has_norm = bool(jax.tree.leaves(constants.get("batch_stats")))
    model = _model(init, call, given, has_norm and not use_running_average)
    jax.eval_shape(model.apply, given, images)  # the errors of `apply` come here and now
    return model


def _model(
    init: Callable[[Array], Params],
    call: Callable[[Params, Array], Any],
    params: Params,
    uses_batch_statistics: bool,
) -> Model:
    """The `Model` of a module's call, with checks of what goes in and comes out."""
    check_params("module", params)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)

    @float32_by_default
    def apply(params: Params, images: Array) -> Array:
        params = fitted(params, wanted)
        if not is_array(images) or not jnp.shape(images):
            raise TypeError(f"images: got {described(images)}, want an array [n, ...]")
        images = jnp.asarray(images)
        if jnp.issubdtype(images.dtype, jnp.floating):
            images = images.astype(common_dtype(*jax.tree.leaves(params)))
        logits = call(params, images)
        if not is_array(logits) or not jnp.issubdtype(jnp.result_type(logits), jnp.floating):
            raise TypeError(f"module must return floating logits, got {described(logits)}")
        if logits.ndim != 2 or len(logits) != len(images):
            shape = list(logits.shape)
            raise ValueError(
                f"module must return logits [n, classes], got {shape} for {len(images)} images"
            )
        return logits

    return Model(init, apply, rowwise=False if uses_batch_statistics else None)


def _shape(example: Any) -> Shape:
    """The shape of one image."""
    return tuple(example) if isinstance(example, tuple | list) else example.shape[1:]


def _example(example: Any) -> Array:
    """Images [n, h, w, c]: the example itself, or zeros of the shape that it gives."""
    is_shape = isinstance(example, tuple | list) and all(
        isinstance(n, int | np.integer) and n > 0 for n in example
    )
    images = jnp.zeros((1, *example)) if is_shape else example
    if not is_array(images) or jnp.ndim(images) != 4:
        got = described(example)[:200]
        raise ValueError(f"example must be images [n, h, w, c] or a shape (h, w, c), got {got}")
    return jnp.asarray(images)


def _modes(use_running_average: bool) -> Any:
    """A context in which linen's norms use these statistics, and dropout does nothing."""

    def interceptor(proceed: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        layer, method = context.module, context.method_name
        if method == "__call__" and isinstance(layer, linen.Dropout):
            return args[0] if args else kwargs["inputs"]
        if method == "__call__" and isinstance(layer, linen.BatchNorm):
            args, kwargs = _norm_arguments(layer, args, kwargs, use_running_average)
        return proceed(*args, **kwargs)

    return linen.intercept_methods(interceptor)


def _norm_arguments(layer: Any, args: Any, kwargs: Any, wanted: bool) -> tuple[Any, Any]:
    """The arguments of a batch norm's call, with `wanted` as its `use_running_average`."""
    at_call = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    set_to = layer.use_running_average if at_call is None else at_call
    if set_to is None:
        return args, {**kwargs, "use_running_average": wanted}
    if bool(set_to) != wanted:
        raise ValueError(
            f"module: its batch norm {layer.name!r} has use_running_average={set_to}, want {wanted}"
            " (give from_linen the argument of the module's call that decides, such as train=True,"
            " or use_running_average)"
        )
    return args, kwargs
