"""Gates: functions that turn mask parameters into step sizes. Each method has its gate.

Every method runs the inner loop ``phi <- phi - gate(m) * grad L(phi)``. A gate is a pair of pure
functions: one creates the mask parameters `m`, the other computes the step sizes from them.
`optax.masked` and `optax.transforms.freeze` need a static boolean mask. The mask of a gate is a
learned array.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse._gate import (
    Gate,
    Init,
    fixed,
    for_part,
    initialiser,
    leafwise,
    specs,
    symmetric,
    under,
)
from jaxsparse._sparsity import sparsity
from jaxsparse.checks import check_number, check_steps
from jaxsparse.clipping import common_dtype, sum_dtype
from jaxsparse.precision import float32_by_default
from jaxsparse.straight_through import binary_mask, relu_mask

__all__ = [
    "Gate",
    "GeneratedMask",
    "LinearMap",
    "all_but_head",
    "binary",
    "body_only",
    "constant",
    "for_part",
    "generated",
    "head_only",
    "linear",
    "per_tensor",
    "rectified",
    "relu",
    "shared",
    "sparsity",
]
Tree = Any


def binary(
    inner_lr: float, *, slope: float = 1.0, init: Init = "kaiming", initial_sparsity: float = 0.5
) -> Gate:
    """sparse-MAML's gate: the step size of a parameter is either `inner_lr` or 0.

    ``step = inner_lr * 1[m >= 0]``, with a straight-through gradient.

    Args:
      inner_lr: the step size alpha of the parameters that are not frozen, 0 or more.
      slope: the straight-through slope; see `binary_mask`.
      init: a constant, a `(low, high)` range, or "kaiming". "kaiming" draws uniformly from
        +-sqrt(6 / fan_in) for tensors of rank > 1 and from +-0.5 for vectors, then subtracts the
        mean of each tensor.
      initial_sparsity: for "kaiming", the share of entries that start at step size 0. The drawn
        values are shifted to reach it: exactly for 0 and 1, on average for other values. For 0
        and 1, and in tensors with one entry, the mean is not subtracted.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

    Raises:
      TypeError, ValueError: an argument has the wrong type or is not finite, `inner_lr` is
        negative, or `initial_sparsity` is outside [0, 1]. From the `init` of the gate: a parameter
        is not floating or has no entries.

    Examples:
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

    step = leafwise(lambda x: jnp.asarray(inner_lr, x.dtype) * binary_mask(x, slope))
    return Gate(initialiser(init, initial_sparsity), step)


def relu(init: Init = 0.1) -> Gate:
    """sparse-ReLU-MAML's gate: a learned, non-negative step size per parameter.

    ``step = max(m, 0)``, with a straight-through gradient: m is updated even if the step size is 0.

    Args:
      init: a constant, or a `(low, high)` range to draw from uniformly.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

    Raises:
      TypeError, ValueError: `init` is neither a finite number nor a range of two, low < high.

    Examples:
      >>> gate = relu(init=(0.005, 0.1))

    Source: von Oswald, Zhao et al. 2021, supplement Sec. A.
    """
    return Gate(initialiser(init), leafwise(relu_mask))


def rectified(init: Init) -> Gate:
    """La-MAML's gate: ``step = max(m, 0)`` with its true derivative (zero for ``m <= 0``).

    Args:
      init: a constant, or a `(low, high)` range to draw from uniformly.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

    Raises:
      TypeError, ValueError: `init` is neither a finite number nor a range of two, low < high.

    Examples:
      >>> gate = rectified(init=0.15)

    Source: Gupta et al. 2020, La-MAML, Eq. 7 and Algorithm 1.
    """
    return Gate(initialiser(init), leafwise(jax.nn.relu))


def linear(init: Init) -> Gate:
    """Meta-SGD's gate: ``step = m``, a learned step size per parameter, positive or negative.

    Args:
      init: a constant, or a `(low, high)` range to draw from uniformly.

    Returns:
      A `Gate` whose mask has the tree and shapes of the parameters.

    Raises:
      TypeError, ValueError: `init` is neither a finite number nor a range of two, low < high.

    Examples:
      >>> gate = linear(init=0.1)

    Source: Li et al. 2017, Meta-SGD, Eq. 1.
    """
    return Gate(initialiser(init), leafwise(lambda x: x))


def per_tensor(init: Init) -> Gate:
    """C-MAML's gate: one learned step size per tensor, positive or negative.

    ``step_i = m_t`` for every entry i of tensor t.

    Args:
      init: a constant, or a `(low, high)` range to draw from uniformly.

    Returns:
      A `Gate` whose mask has the tree of the parameters, with one scalar per leaf.

    Raises:
      TypeError, ValueError: `init` is neither a finite number nor a range of two, low < high.

    Examples:
      >>> gate = per_tensor(init=0.01)
      >>> gate.init(jax.random.key(0), {"w": jnp.ones((3, 2))})["w"].shape
      ()

    Source: Caccia et al. 2020, OSAKA, the learned rates of its public code.
    """
    initialise = initialiser(init)

    def scalars(key, params):
        shapes, tree = specs(params)
        return initialise(key, jax.tree.unflatten(tree, [jnp.zeros((), x.dtype) for x in shapes]))

    return Gate(scalars, leafwise(lambda x: x))


def constant(inner_lr: float) -> Gate:
    """MAML's gate: ``step = inner_lr`` for every parameter, not trained.

    Args:
      inner_lr: the step size alpha, 0 or more.

    Returns:
      A `Gate` whose mask holds the step sizes and is never updated.

    Raises:
      TypeError, ValueError: `inner_lr` is not a finite number, or is negative.

    Examples:
      >>> gate = constant(inner_lr=0.1)

    Source: Finn et al. 2017, MAML, Algorithm 1.
    """
    check_number("inner_lr", inner_lr, 0)
    return fixed(lambda params: lambda path: inner_lr)


def head_only(inner_lr: float, head: str = "head") -> Gate:
    """ANIL's gate: ``step = inner_lr`` in the head and 0 elsewhere, not trained.

    Args:
      inner_lr: the step size alpha of the head.
      head: the path of the head's parameters: its keys joined by slashes, such as "head",
        "params/head", "layers/1" or Haiku's "mlp/~/linear_1". Keys are matched as a whole.

    Returns:
      A `Gate` whose mask holds the step sizes and is never updated.

    Raises:
      TypeError, ValueError: `inner_lr` is not a finite number, or is negative. From the `init` of
        the gate: `head` contains none or all of the parameters, or matches two places.

    Examples:
      >>> gate = head_only(inner_lr=0.1)

    Source: Raghu et al. 2020, ANIL, Sec. 4.1.
    """
    check_number("inner_lr", inner_lr, 0)

    def rates(params):
        in_head = under(params, head)
        return lambda path: inner_lr if in_head(path) else 0.0

    return fixed(rates)


def all_but_head(inner_lr: float, head: str = "head") -> Gate:
    """BOIL's gate: ``step = inner_lr`` in the body and 0 in the head, not trained.

    Args:
      inner_lr: the step size alpha of the body.
      head: the path of the head's parameters: its keys joined by slashes, such as "head",
        "params/head", "layers/1" or Haiku's "mlp/~/linear_1". Keys are matched as a whole.

    Returns:
      A `Gate` whose mask holds the step sizes and is never updated.

    Raises:
      TypeError, ValueError: `inner_lr` is not a finite number, or is negative. From the `init` of
        the gate: `head` contains none or all of the parameters, or matches two places.

    Examples:
      >>> gate = all_but_head(inner_lr=0.1)

    Source: Oh et al. 2021, BOIL, Sec. 3.
    """
    check_number("inner_lr", inner_lr, 0)

    def rates(params):
        in_head = under(params, head)
        return lambda path: 0.0 if in_head(path) else inner_lr

    return fixed(rates)


# Names used by earlier versions.
shared, body_only = per_tensor, all_but_head


class GeneratedMask(NamedTuple):
    """The mask parameters of `generated`: mean and deviation of the code, and a map per leaf."""

    mu: jax.Array  # [embedding]
    sigma: jax.Array  # [embedding]
    maps: Tree  # the tree of the parameters: a `LinearMap` per convolution, else an m per parameter


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
    """sparse-MAML+'s gate: the mask of the convolutions is generated from noise for each task.

    ``step = inner_lr * 1[A (z * sigma + mu) + b >= 0]``, ``z ~ N(0, I)``, for leaves of rank 4.
    The other leaves use the `binary` gate, with a learned m per parameter.

    Args:
      inner_lr: the step size alpha of the parameters that are not frozen.
      embedding: E, the length of the code z.
      slope: the straight-through slope; see `binary_mask`.
      initial_sparsity: the initial sparsity of the leaves that use the `binary` gate.

    Returns:
      A stochastic `Gate`: `apply` needs a key, one per task.

    Raises:
      TypeError, ValueError: as in `binary`, or `embedding` is not a positive integer. From `apply`:
        the key is None.

    Examples:
      >>> gate = generated(inner_lr=0.1, embedding=16)
      >>> m = gate.init(jax.random.key(0), {"conv": jnp.ones((3, 3, 1, 4)), "b": jnp.ones(4)})
      >>> gate.apply(m, jax.random.key(1))["conv"].shape
      (3, 3, 1, 4)

    Source: von Oswald, Zhao et al. 2021, sparse-MAML+ (supplement Sec. A).
    """
    own = binary(inner_lr, slope=slope, initial_sparsity=initial_sparsity)
    check_steps("embedding", embedding, least=1)
    bound = embedding**-0.5  # PyTorch's default for a linear layer

    def linear_map(key, leaf):
        weight_key, bias_key = jax.random.split(key)
        weight = symmetric(weight_key, (embedding, *leaf.shape), leaf.dtype, bound)
        return LinearMap(weight, symmetric(bias_key, leaf.shape, leaf.dtype, bound))

    def init(key, params):
        shapes, tree = specs(params)
        keys = jax.random.split(key, len(shapes))
        own_masks = jax.tree.leaves(own.init(key, params))
        maps = [
            linear_map(k, leaf) if len(leaf.shape) == 4 else m
            for k, leaf, m in zip(keys, shapes, own_masks, strict=True)
        ]
        wide = sum_dtype(common_dtype(*(x.dtype for x in shapes)))
        mu, sigma = jnp.zeros(embedding, wide), jnp.ones(embedding, wide)
        return GeneratedMask(mu, sigma, jax.tree.unflatten(tree, maps))

    @float32_by_default
    def apply(m, key):
        if key is None:
            raise ValueError("key is None, want a PRNG key: the generated gate draws a code z")
        z = jax.random.normal(key, m.mu.shape, m.mu.dtype)
        code = z * m.sigma + m.mu

        def score(leaf):
            if not isinstance(leaf, LinearMap):
                return leaf
            return jnp.tensordot(code.astype(leaf.weight.dtype), leaf.weight, 1) + leaf.bias

        scores = jax.tree.map(score, m.maps, is_leaf=lambda x: isinstance(x, LinearMap))
        return own.apply(scores, None)

    return Gate(init, apply, stochastic=True)
