"""Gates: what tells one method from another.

Every method runs the inner loop ``phi <- phi - gate(m) * grad L(phi)``; a gate is the pair of pure
functions that makes the mask parameters `m` and turns them into step sizes. `optax.masked` and
`optax.transforms.freeze` want a static boolean mask; a gate's mask is an array that is learned.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_floating, leaves_by_name, path_name
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
    """

    init: Callable[[jax.Array, Tree], Tree]
    apply: Callable[[Tree, jax.Array | None], Tree]
    stochastic: bool = False


def binary(
    inner_lr: float, *, slope: float = 1.0, init: Init = "kaiming", initial_sparsity: float = 0.5
) -> Gate:
    """sparse-MAML's gate: a parameter moves with the inner rate or not at all.

    ``step = inner_lr * 1[m >= 0]``, straight-through.

    Args:
      inner_lr: the step size alpha of the parameters that move.
      slope: the straight-through slope; see `binary_mask`.
      init: "kaiming" (tensors of rank > 1 uniform within ``sqrt(6 / fan_in)``, vectors uniform
        within 0.5, each centred on its own mean), a constant, or a `(low, high)` range.
      initial_sparsity: with "kaiming", the share of zeros that the centred values are shifted to.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

    Raises:
      ValueError: `initial_sparsity` outside [0, 1] or an unknown `init`.

    Example:
      >>> gate = binary(inner_lr=0.25)
      >>> m = gate.init(jax.random.key(0), {"w": jnp.ones((3, 2))})
      >>> gate.apply(m, None)["w"].shape
      (3, 2)

    Source: von Oswald, Zhao et al. 2021, Eqs. 8-10; initialisation from the authors' code.
    """
    if not 0.0 <= initial_sparsity <= 1.0:
        raise ValueError(f"initial_sparsity must lie in [0, 1], got {initial_sparsity}")

    step = _leafwise(lambda x: inner_lr * binary_mask(x, slope))
    return Gate(_initialiser(init, initial_sparsity), step)


def relu(init: Init = 0.1) -> Gate:
    """sparse-ReLU-MAML's gate: a learned, non-negative rate per parameter.

    ``step = max(m, 0)``, straight-through: the cotangent reaches m also where the rate is zero.

    Args:
      init: a constant, or a `(low, high)` range to draw from uniformly.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

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

    Example:
      >>> gate = shared(init=0.01)
      >>> gate.init(jax.random.key(0), {"w": jnp.ones((3, 2))})["w"].shape
      ()

    Source: Caccia et al. 2020, OSAKA, the learned rates of its public code.
    """
    initialise = _initialiser(init)

    def scalars(key, params):
        return initialise(key, jax.tree.map(lambda x: jnp.zeros((), jnp.result_type(x)), params))

    return Gate(scalars, _leafwise(lambda x: x))


def constant(inner_lr: float) -> Gate:
    """MAML's gate: ``step = inner_lr`` for every parameter, never trained.

    Args:
      inner_lr: the step size alpha.

    Returns:
      A `Gate` whose mask holds the step sizes themselves and receives no gradient.

    Example:
      >>> gate = constant(inner_lr=0.1)

    Source: Finn et al. 2017, MAML, Algorithm 1.
    """
    return _fixed(lambda name: inner_lr)


def head_only(inner_lr: float, head: str = "head") -> Gate:
    """ANIL's gate: ``step = inner_lr`` in the head, 0 elsewhere, never trained.

    Args:
      inner_lr: the step size alpha of the head.
      head: the first component of the head's parameter paths.

    Returns:
      A `Gate` whose mask holds the step sizes themselves and receives no gradient.

    Raises:
      ValueError: (from `init`) no parameter lies under `head`.

    Example:
      >>> gate = head_only(inner_lr=0.1)

    Source: Raghu et al. 2020, ANIL, Sec. 4.1.
    """
    return _fixed(lambda name: inner_lr if _under(name, head) else 0.0, head)


def body_only(inner_lr: float, head: str = "head") -> Gate:
    """BOIL's gate: ``step = inner_lr`` everywhere but in the head, 0 there, never trained.

    Args:
      inner_lr: the step size alpha of the body.
      head: the first component of the head's parameter paths.

    Returns:
      A `Gate` whose mask holds the step sizes themselves and receives no gradient.

    Raises:
      ValueError: (from `init`) no parameter lies under `head`.

    Example:
      >>> gate = body_only(inner_lr=0.1)

    Source: Oh et al. 2021, BOIL, Sec. 3.
    """
    return _fixed(lambda name: 0.0 if _under(name, head) else inner_lr, head)


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
      ValueError: (from `apply`) no key given.

    Example:
      >>> gate = generated(inner_lr=0.1, embedding=16)
      >>> m = gate.init(jax.random.key(0), {"conv": jnp.ones((3, 3, 1, 4)), "b": jnp.ones(4)})
      >>> gate.apply(m, jax.random.key(1))["conv"].shape
      (3, 3, 1, 4)

    Source: von Oswald, Zhao et al. 2021, sparse-MAML+ (supplement Sec. A).
    """
    own = binary(inner_lr, slope=slope, initial_sparsity=initial_sparsity)
    bound = embedding**-0.5  # PyTorch's default for a linear layer

    def linear_map(key, leaf):
        weight_key, bias_key = jax.random.split(key)
        weight = _uniform(weight_key, (embedding, *leaf.shape), leaf.dtype, bound)
        return LinearMap(weight, _uniform(bias_key, leaf.shape, leaf.dtype, bound))

    def init(key, params):
        check_floating("params", params)
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        own_masks = jax.tree.leaves(own.init(key, params))
        maps = [
            linear_map(k, leaf) if leaf.ndim == 4 else m
            for k, leaf, m in zip(keys, leaves, own_masks, strict=True)
        ]
        return GeneratedMask(
            jnp.zeros(embedding), jnp.ones(embedding), jax.tree.unflatten(tree, maps)
        )

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


def sparsity(step_sizes: Tree) -> dict[str, jax.Array]:
    """The share of parameters that the inner loop cannot change.

    ``#{i : step_i = 0} / #i``, of all step sizes together and of each leaf.

    Args:
      step_sizes: what a gate's `apply` returns, a tree shaped like the parameters.

    Returns:
      `{"total": ..., "<path>": ...}`, scalars in [0, 1].

    Raises:
      ValueError: `step_sizes` has no leaves.

    Example:
      >>> {k: float(v) for k, v in sparsity({"w": jnp.array([0.0, 0.1])}).items()}
      {'total': 0.5, 'w': 0.5}

    Source: the figures' "gradient sparsity" (von Oswald, Zhao et al. 2021, Fig. 1).
    """
    leaves = leaves_by_name(step_sizes)
    if not leaves:
        raise ValueError("step_sizes has no leaves, want a tree shaped like the parameters")
    zeros = {name: jnp.sum(leaf == 0) for name, leaf in leaves.items()}
    sizes = {name: jnp.size(leaf) for name, leaf in leaves.items()}
    total = jnp.stack(list(zeros.values())).sum() / sum(sizes.values())
    return {"total": total} | {name: zeros[name] / sizes[name] for name in leaves}


def _leafwise(step: Callable[[jax.Array], jax.Array]) -> Callable[[Tree, jax.Array | None], Tree]:
    """The `apply` of a gate whose step sizes follow from the mask parameter by parameter."""

    def apply(m: Tree, key: jax.Array | None = None) -> Tree:
        return jax.tree.map(step, m)

    return apply


def _initialiser(init: Init, initial_sparsity: float = 0.5) -> Callable:
    if isinstance(init, str) and init != "kaiming":
        raise ValueError(f"init must be a number, a (low, high) range or 'kaiming', got {init!r}")

    def leaf_init(key, leaf):
        if isinstance(init, tuple):
            return uniform(key, leaf.shape, leaf.dtype, *init)
        if isinstance(init, str):
            return _centred(key, leaf, initial_sparsity)
        return jnp.full(leaf.shape, init, leaf.dtype)

    def initialise(key, params):
        check_floating("params", params)
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        specs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        return jax.tree.unflatten(tree, draw_each(leaf_init, keys, specs))

    return initialise


def _centred(key, leaf, initial_sparsity):
    fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else None
    bound = (6.0 / fan_in) ** 0.5 if fan_in else 0.5
    values = _uniform(key, leaf.shape, leaf.dtype, bound)
    # Uniform values within the bound, moved up by bound * (1 - 2 s), are below zero with
    # probability s.
    return values - values.mean() + jnp.asarray(bound * (1 - 2 * initial_sparsity), leaf.dtype)


def _uniform(key, shape, dtype, bound):
    return uniform(key, shape, dtype, -bound, bound)


def _fixed(rate: Callable[[str], float], head: str | None = None) -> Gate:
    def init(key, params):
        check_floating("params", params)
        names = leaves_by_name(params)
        if head is not None and not any(_under(name, head) for name in names):
            groups = sorted({name.split("/")[0] for name in names})
            raise ValueError(f"head is {head!r}, but params has only {', '.join(groups)}")
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full(x.shape, rate(path_name(path)), x.dtype), params
        )

    return Gate(init, _leafwise(jax.lax.stop_gradient))


def _under(name: str, head: str) -> bool:
    return name.split("/")[0] == head
