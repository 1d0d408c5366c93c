"""Gates: what tells one method from another.

Every method runs the inner loop ``phi <- phi - gate(m) * grad L(phi)``; a gate is the pair of pure
functions that makes the mask parameters `m` and turns them into step sizes. `optax.masked` and
`optax.transforms.freeze` want a static boolean mask; a gate's mask is an array that is learned.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.checks import (
    check_entries,
    check_number,
    check_params,
    check_steps,
    described,
    is_array,
    is_traced,
    leaf_names,
    leaves_by_name,
    path_name,
)
from jaxsparse.clipping import common_dtype, sum_dtype
from jaxsparse.draws import draw_each, uniform
from jaxsparse.precision import float32_by_default
from jaxsparse.straight_through import binary_mask, relu_mask

Tree = Any
# A constant (which may be traced), a uniform range, or "kaiming".
Init = float | jax.Array | tuple[float, float] | str


class Gate(NamedTuple):
    """A pair of pure functions that decide how far each parameter may move in the inner loop.

    Attributes:
      init: `(key, params) -> m`, the mask parameters, a tree.
      apply: `(m, key) -> step sizes`, a tree shaped like params. Deterministic gates take
        `key=None`.
      stochastic: whether `apply` draws from its key: such a gate is applied once per task.
      trained: whether m is learned. If not, the steps leave m exactly as it is, whatever its
        optimiser does (weight decay, say).
    """

    init: Callable[[jax.Array, Tree], Tree]
    apply: Callable[[Tree, jax.Array | None], Tree]
    stochastic: bool = False
    trained: bool = True


def binary(
    inner_lr: float, *, slope: float = 1.0, init: Init = "kaiming", initial_sparsity: float = 0.5
) -> Gate:
    """sparse-MAML's gate: a parameter moves with the inner rate or not at all.

    ``step = inner_lr * 1[m >= 0]``, straight-through.

    Args:
      inner_lr: the step size alpha of the parameters that move, 0 or more.
      slope: the straight-through slope; see `binary_mask`.
      init: "kaiming" (tensors of rank > 1 uniform within ``sqrt(6 / fan_in)``, vectors uniform
        within 0.5, each centred on its own mean), a constant, or a `(low, high)` range.
      initial_sparsity: with "kaiming", the share of zeros that the centred values are shifted to:
        0 and 1 exactly, others on average. Neither for 0 and 1 nor in tensors of one entry is
        there any centring.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

    Raises:
      TypeError, ValueError: a rate, slope or `init` that is no finite number (or, `init`, range or
        "kaiming"), a negative `inner_lr`, `initial_sparsity` outside [0, 1]; (from `init`) a
        parameter that is not floating, or without entries.

    Example:
      >>> gate = binary(inner_lr=0.25)
      >>> m = gate.init(jax.random.key(0), {"w": jnp.ones((3, 2))})
      >>> gate.apply(m, None)["w"].shape
      (3, 2)

    Source: von Oswald, Zhao et al. 2021, Eqs. 8-10; initialisation from the authors' code.
    """
    check_number("inner_lr", inner_lr, 0)
    check_number("slope", slope)
    check_number("initial_sparsity", initial_sparsity)
    if not 0.0 <= initial_sparsity <= 1.0:
        raise ValueError(f"initial_sparsity must lie in [0, 1], got {initial_sparsity}")

    step = _leafwise(lambda x: jnp.asarray(inner_lr, x.dtype) * binary_mask(x, slope))
    return Gate(_initialiser(init, initial_sparsity), step)


def relu(init: Init = 0.1) -> Gate:
    """sparse-ReLU-MAML's gate: a learned, non-negative rate per parameter.

    ``step = max(m, 0)``, straight-through: the cotangent reaches m also where the rate is zero.

    Args:
      init: a constant, or a `(low, high)` range to draw from uniformly.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

    Raises:
      TypeError, ValueError: `init` is neither a finite number nor a range of two, low < high.

    Example:
      >>> gate = relu(init=(0.005, 0.1))

    Source: von Oswald, Zhao et al. 2021, supplement Sec. A.
    """
    return Gate(_initialiser(init), _leafwise(relu_mask))


def rectified(init: Init) -> Gate:
    """La-MAML's gate: ``step = max(m, 0)`` with its true derivative (zero for ``m <= 0``).

    Args:
      init: a constant, or a `(low, high)` range to draw from uniformly.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

    Raises:
      TypeError, ValueError: `init` is neither a finite number nor a range of two, low < high.

    Example:
      >>> gate = rectified(init=0.15)

    Source: Gupta et al. 2020, La-MAML, Eq. 7 and Algorithm 1.
    """
    return Gate(_initialiser(init), _leafwise(jax.nn.relu))


def linear(init: Init) -> Gate:
    """Meta-SGD's gate: ``step = m``, a learned rate of either sign per parameter.

    Args:
      init: a constant, or a `(low, high)` range to draw from uniformly.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

    Raises:
      TypeError, ValueError: `init` is neither a finite number nor a range of two, low < high.

    Example:
      >>> gate = linear(init=0.1)

    Source: Li et al. 2017, Meta-SGD, Eq. 1.
    """
    return Gate(_initialiser(init), _leafwise(lambda x: x))


def shared(init: Init) -> Gate:
    """C-MAML's gate: ``step = m``, a learned rate of either sign for each tensor.

    ``step_i = m_t`` for every entry i of tensor t.

    Args:
      init: a constant, or a `(low, high)` range to draw from uniformly.

    Returns:
      A `Gate` whose mask has the tree of the parameters and scalars for leaves.

    Raises:
      TypeError, ValueError: `init` is neither a finite number nor a range of two, low < high.

    Example:
      >>> gate = shared(init=0.01)
      >>> gate.init(jax.random.key(0), {"w": jnp.ones((3, 2))})["w"].shape
      ()

    Source: Caccia et al. 2020, OSAKA, the learned rates of its public code.
    """
    initialise = _initialiser(init)

    def scalars(key, params):
        specs, tree = _specs(params)
        return initialise(key, jax.tree.unflatten(tree, [jnp.zeros((), x.dtype) for x in specs]))

    return Gate(scalars, _leafwise(lambda x: x))


def constant(inner_lr: float) -> Gate:
    """MAML's gate: ``step = inner_lr`` for every parameter, never trained.

    Args:
      inner_lr: the step size alpha, 0 or more.

    Returns:
      A `Gate` whose mask holds the step sizes themselves; no step changes it.

    Raises:
      TypeError, ValueError: `inner_lr` is no finite number, or negative.

    Example:
      >>> gate = constant(inner_lr=0.1)

    Source: Finn et al. 2017, MAML, Algorithm 1.
    """
    check_number("inner_lr", inner_lr, 0)
    return _fixed(lambda params: lambda path: inner_lr)


def head_only(inner_lr: float, head: str = "head") -> Gate:
    """ANIL's gate: ``step = inner_lr`` in the head, 0 elsewhere, never trained.

    Args:
      inner_lr: the step size alpha of the head.
      head: where the head's parameters lie: the keys that lead there, joined by slashes, as
        "head", "params/head", "layers/1" or Haiku's "mlp/~/linear_1". Only whole keys count.

    Returns:
      A `Gate` whose mask holds the step sizes themselves; no step changes it.

    Raises:
      TypeError, ValueError: `inner_lr` is no finite number or negative; (from `init`) no parameter
        lies under `head`, or all do, or it names two places.

    Example:
      >>> gate = head_only(inner_lr=0.1)

    Source: Raghu et al. 2020, ANIL, Sec. 4.1.
    """
    check_number("inner_lr", inner_lr, 0)

    def rates(params):
        under = _under(params, head)
        return lambda path: inner_lr if under(path) else 0.0

    return _fixed(rates)


def body_only(inner_lr: float, head: str = "head") -> Gate:
    """BOIL's gate: ``step = inner_lr`` everywhere but in the head, 0 there, never trained.

    Args:
      inner_lr: the step size alpha of the body.
      head: where the head's parameters lie: the keys that lead there, joined by slashes, as
        "head", "params/head", "layers/1" or Haiku's "mlp/~/linear_1". Only whole keys count.

    Returns:
      A `Gate` whose mask holds the step sizes themselves; no step changes it.

    Raises:
      TypeError, ValueError: `inner_lr` is no finite number or negative; (from `init`) no parameter
        lies under `head`, or all do, or it names two places.

    Example:
      >>> gate = body_only(inner_lr=0.1)

    Source: Oh et al. 2021, BOIL, Sec. 3.
    """
    check_number("inner_lr", inner_lr, 0)

    def rates(params):
        under = _under(params, head)
        return lambda path: 0.0 if under(path) else inner_lr

    return _fixed(rates)


class GeneratedMask(NamedTuple):
    """The mask parameters of `generated`: the code's mean and spread, and a map per leaf."""

    mu: jax.Array  # [embedding]
    sigma: jax.Array  # [embedding]
    maps: Tree  # the tree of the parameters: a `LinearMap` per convolution, an own m elsewhere


class LinearMap(NamedTuple):
    """One leaf's part of the linear map from the code to all convolution weights."""

    weight: jax.Array  # [embedding, *shape of the leaf]
    bias: jax.Array  # [*shape of the leaf]


def generated(
    inner_lr: float,
    *,
    embedding: int = 1600,
    slope: float = 1.0,
    initial_sparsity: float = 0.5,
) -> Gate:
    """sparse-MAML+'s gate: the convolutions' mask is generated from noise, anew for each task.

    ``step = inner_lr * 1[A (z * sigma + mu) + b >= 0]``, ``z ~ N(0, I)``, for leaves of rank 4;
    the other leaves have the binary gate and an own m.

    Args:
      inner_lr: the step size alpha of the parameters that move.
      embedding: E, the length of the code z.
      slope: the straight-through slope; see `binary_mask`.
      initial_sparsity: of the leaves with an own m.

    Returns:
      A stochastic `Gate`: `apply` needs a key, one per task.

    Raises:
      TypeError, ValueError: as `binary`; `embedding` is no positive integer; (from `apply`) no key
        given.

    Example:
      >>> gate = generated(inner_lr=0.1, embedding=16)
      >>> m = gate.init(jax.random.key(0), {"conv": jnp.ones((3, 3, 1, 4)), "b": jnp.ones(4)})
      >>> gate.apply(m, jax.random.key(1))["conv"].shape
      (3, 3, 1, 4)

    Source: von Oswald, Zhao et al. 2021, sparse-MAML+ (supplement Sec. A).
    """
    own = binary(inner_lr, slope=slope, initial_sparsity=initial_sparsity)
    check_steps("embedding", embedding)
    if not embedding:
        raise ValueError("embedding must be 1 or more, got 0")
    bound = embedding**-0.5  # PyTorch's default for a linear layer

    def linear_map(key, leaf):
        weight_key, bias_key = jax.random.split(key)
        weight = _uniform(weight_key, (embedding, *leaf.shape), leaf.dtype, bound)
        return LinearMap(weight, _uniform(bias_key, leaf.shape, leaf.dtype, bound))

    def init(key, params):
        specs, tree = _specs(params)
        keys = jax.random.split(key, len(specs))
        own_masks = jax.tree.leaves(own.init(key, params))
        maps = [
            linear_map(k, leaf) if len(leaf.shape) == 4 else m
            for k, leaf, m in zip(keys, specs, own_masks, strict=True)
        ]
        wide = sum_dtype(common_dtype(*(x.dtype for x in specs)))
        mu, sigma = jnp.zeros(embedding, wide), jnp.ones(embedding, wide)
        return GeneratedMask(mu, sigma, jax.tree.unflatten(tree, maps))

    @float32_by_default
    def apply(m, key):
        if key is None:
            raise ValueError("key is None, but the generated gate draws a code z: want a PRNG key")
        z = jax.random.normal(key, m.mu.shape, m.mu.dtype)
        code = z * m.sigma + m.mu

        def score(leaf):
            if not isinstance(leaf, LinearMap):
                return leaf
            return jnp.tensordot(code.astype(leaf.weight.dtype), leaf.weight, 1) + leaf.bias

        scores = jax.tree.map(score, m.maps, is_leaf=lambda x: isinstance(x, LinearMap))
        return own.apply(scores, None)

    return Gate(init, apply, stochastic=True)


def sparsity(step_sizes: Tree, params: Tree | None = None) -> dict[str, jax.Array]:
    """The share of parameters that the inner loop cannot change.

    ``#{i : step_i = 0} / #i``, of all parameters together and of each leaf.

    Args:
      step_sizes: what a gate's `apply` returns, a tree shaped like the parameters; a scalar leaf is
        shared by the whole tensor.
      params: the parameters, a tree like `step_sizes`, of which only shapes count. A shared step
        size then stands for as many parameters as share it; None counts it as one.

    Returns:
      `{"total": ..., "<path>": ...}`, float32 scalars in [0, 1]. A path that is called "total" or
      that two leaves have is written in full, as `['total']`.

    Raises:
      TypeError: a leaf is no array.
      ValueError: `step_sizes` has no leaves, or one without entries; `params` does not fit.

    Example:
      >>> {k: float(v) for k, v in sparsity({"w": jnp.array([0.0, 0.1])}).items()}
      {'total': 0.5, 'w': 0.5}

    Source: the figures' "gradient sparsity" (von Oswald, Zhao et al. 2021, Fig. 1).
    """
    check_entries("step_sizes", step_sizes)
    names = leaf_names(step_sizes, taken=("total",))
    leaves = jax.tree.leaves(step_sizes)
    zeros = [jnp.sum(leaf == 0, dtype=jnp.int32) for leaf in leaves]
    sizes = [jnp.size(leaf) for leaf in leaves]
    shared = [1] * len(leaves) if params is None else _sharing(step_sizes, params)
    changed = jnp.stack([n * s for n, s in zip(zeros, shared, strict=True)]).sum(dtype=jnp.int32)
    total = _share(changed, sum(n * s for n, s in zip(sizes, shared, strict=True)))
    return {"total": total} | dict(zip(names, map(_share, zeros, sizes), strict=True))


def _share(count, size):
    return count.astype(jnp.float32) / size


def _sharing(step_sizes, params):
    """How many parameters share each step size, leaf by leaf."""
    got: Any = jax.tree.structure(step_sizes)
    want: Any = jax.tree.structure(params)
    if got != want:
        raise ValueError(f"params must have the tree of step_sizes: got {want}, want {got}")
    shared = []
    pairs = zip(leaves_by_name(step_sizes).items(), jax.tree.leaves(params), strict=True)
    for (name, sizes), leaf in pairs:
        shape, wide = np.shape(sizes), np.shape(leaf)
        if wide[: len(shape)] != shape:
            raise ValueError(f"step_sizes[{name}] has shape {shape}, params has {wide}")
        shared.append(math.prod(wide[len(shape) :]))
    return shared


def _leafwise(step: Callable[[jax.Array], jax.Array]) -> Callable[[Tree, jax.Array | None], Tree]:
    """The `apply` of a gate whose step sizes follow from the mask parameter by parameter."""

    def apply(m: Tree, key: jax.Array | None = None) -> Tree:
        return jax.tree.map(step, m)

    return apply


def _initialiser(init: Init, initial_sparsity: float | None = None) -> Callable:
    """The `init` of a gate with an m for each parameter; only with a sparsity may it be kaiming."""
    _check_init(init, kaiming=initial_sparsity is not None)

    def leaf_init(key, leaf):
        if isinstance(init, tuple):
            return uniform(key, leaf.shape, leaf.dtype, *init)
        if isinstance(init, str):
            return _kaiming(key, leaf, initial_sparsity)
        return jnp.full(leaf.shape, init, leaf.dtype)

    def initialise(key, params):
        specs, tree = _specs(params)
        keys = jax.random.split(key, len(specs))
        return jax.tree.unflatten(tree, draw_each(leaf_init, keys, specs))

    return initialise


def _check_init(init, kaiming):
    wanted = "a number, a (low, high) range or 'kaiming'" if kaiming else "a number or (low, high)"
    if isinstance(init, str):
        fits = kaiming and init == "kaiming"
    else:
        fits = is_array(init) or (isinstance(init, tuple) and len(init) == 2)
    if not fits:
        got = repr(init) if isinstance(init, tuple) else described(init)
        raise ValueError(f"init must be {wanted}, got {got}")
    if isinstance(init, str):
        return
    for number in init if isinstance(init, tuple) else (init,):
        check_number("init", number)
    if isinstance(init, tuple) and not any(map(is_traced, init)) and not init[0] < init[1]:
        raise ValueError(f"init must be a range (low, high) with low < high, got {init}")


def _specs(params):
    """The shapes and dtypes of the parameters, and their tree."""
    check_params("params", params)
    leaves, tree = jax.tree.flatten(params)
    return [jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in leaves], tree


def _kaiming(key, leaf, initial_sparsity):
    fan_in = leaf.size // leaf.shape[-1] if len(leaf.shape) > 1 else None
    bound = (6.0 / fan_in) ** 0.5 if fan_in else 0.5
    values = _uniform(key, leaf.shape, leaf.dtype, bound)
    # Uniform values within the bound, moved up by bound * (1 - 2 s), are below zero with
    # probability s.
    shift = jnp.asarray(bound * (1 - 2 * initial_sparsity), leaf.dtype)
    if initial_sparsity == 0:
        return jnp.maximum(values + shift, 0)
    if initial_sparsity == 1:
        # Zero would be a step: the threshold itself counts as above it.
        return jnp.minimum(values + shift, -float(jnp.finfo(leaf.dtype).tiny))
    # A single value is its own mean.
    return values + shift if leaf.size == 1 else values - values.mean() + shift


def _uniform(key, shape, dtype, bound):
    return uniform(key, shape, dtype, -bound, bound)


def _fixed(rates: Callable[[Tree], Callable[[tuple], float]]) -> Gate:
    """A gate whose m holds the step sizes; `rates(params)` says which a path has."""

    def init(key, params):
        check_params("params", params)
        rate = rates(params)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full(np.shape(x), rate(path), jnp.result_type(x)), params
        )

    return Gate(init, _leafwise(jax.lax.stop_gradient), trained=False)


def _under(params: Tree, head: str) -> Callable[[tuple], bool]:
    """Whether a path leads to a parameter under `head`; ValueError unless some do, and not all."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    places = {path[:n] for path in paths for n in range(1, len(path) + 1)}
    heads = [place for place in places if path_name(place) == head]
    if not heads:
        raise ValueError(f"head is {head!r}, but params has only {', '.join(_groups(paths))}")
    if len(heads) > 1:
        written = " and ".join(sorted(map(jax.tree_util.keystr, heads)))
        raise ValueError(f"head is {head!r}, which names two places in params: {written}")

    def under(path):
        return path[: len(heads[0])] == heads[0]

    if all(map(under, paths)):
        raise ValueError(f"head is {head!r}, but that is all of params: want a part of them")
    return under


def _groups(paths):
    """The places that a head may name, at the first depth where there is a choice."""
    groups = [path_name(path) for path in paths]
    for depth in range(1, max(map(len, paths)) + 1):
        groups = sorted({path_name(path[:depth]) for path in paths})
        if len(groups) > 1:
            break
    return groups
