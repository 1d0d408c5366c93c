"""The `Gate` type and the helpers that the gates are built from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse._tree import partition
from jaxsparse.checks import check_number, check_params, described, is_array, is_traced, path_name
from jaxsparse.draws import draw_each, uniform

Tree = Any
# A constant (which may be traced), a uniform range, or "kaiming".
Init = float | jax.Array | tuple[float, float] | str


class Gate(NamedTuple):
    """A pair of pure functions that give the inner step size of each parameter.

    Attributes:
      init: `(key, params) -> m`, the mask parameters, a pytree.
      apply: `(m, key) -> step sizes`, a tree shaped like params. Deterministic gates take
        `key=None`.
      stochastic: True if `apply` uses its key. Such a gate is applied once per task.
      trained: True if m is learned. If False, m never changes, not even by weight decay.
    """

    init: Callable[[jax.Array, Tree], Tree]
    apply: Callable[[Tree, jax.Array | None], Tree]
    stochastic: bool = False
    trained: bool = True


def for_part(gate: Gate, inner_params: Callable[[str], bool]) -> Gate:
    """Keep parameters out of the inner loop: apply a gate to a part of the parameters.

    ``step = gate(m)`` for the parameters that `inner_params` selects; the others have no m, and
    None in place of a step size.

    Args:
      gate: any gate.
      inner_params: `path -> bool`: True if the inner loop adapts the parameter with this path,
        such as "norm1/scale".

    Returns:
      A `Gate` whose mask and step sizes have None for the other parameters.

    Raises:
      ValueError: from `init`: `inner_params` selects no parameter.

    Examples:
      >>> gate = for_part(gates.binary(0.1), lambda name: not name.startswith("norm"))
      >>> gate.init(jax.random.key(0), {"norm": jnp.ones(3), "head": jnp.ones(2)})["norm"] is None
      True

    Source: von Oswald, Zhao et al. 2021, supplement: batch-norm parameters of ResNet-12 are not
      adapted.
    """

    def init(key, params):
        return gate.init(key, partition(params, inner_params)[0])

    return gate._replace(init=init)


def leafwise(step: Callable[[jax.Array], jax.Array]) -> Callable[[Tree, jax.Array | None], Tree]:
    """The `apply` of a gate that computes each step size from one mask parameter."""

    def apply(m: Tree, key: jax.Array | None = None) -> Tree:
        return jax.tree.map(step, m)

    return apply


def initialiser(init: Init, initial_sparsity: float | None = None) -> Callable:
    """The `init` of a gate with one m per parameter; "kaiming" needs an `initial_sparsity`."""
    _check_init(init, kaiming=initial_sparsity is not None)

    def leaf_init(key, leaf):
        if isinstance(init, tuple):
            return uniform(key, leaf.shape, leaf.dtype, *init)
        if isinstance(init, str):
            return _kaiming(key, leaf, initial_sparsity)
        return jnp.full(leaf.shape, init, leaf.dtype)

    def initialise(key, params):
        shapes, tree = specs(params)
        keys = jax.random.split(key, len(shapes))
        return jax.tree.unflatten(tree, draw_each(leaf_init, keys, shapes))

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


def specs(params):
    """The shapes and dtypes of the parameters, and their tree."""
    check_params("params", params)
    leaves, tree = jax.tree.flatten(params)
    return [jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in leaves], tree


def _kaiming(key, leaf, initial_sparsity):
    fan_in = leaf.size // leaf.shape[-1] if len(leaf.shape) > 1 else None
    bound = (6.0 / fan_in) ** 0.5 if fan_in else 0.5
    values = symmetric(key, leaf.shape, leaf.dtype, bound)
    # values ~ U(-bound, bound), so values + bound * (1 - 2 s) is below zero with probability s.
    shift = jnp.asarray(bound * (1 - 2 * initial_sparsity), leaf.dtype)
    if initial_sparsity == 0:
        return jnp.maximum(values + shift, 0)
    if initial_sparsity == 1:
        # Strictly below zero, as the gate is open at m = 0.
        return jnp.minimum(values + shift, -float(jnp.finfo(leaf.dtype).tiny))
    # A single value minus its mean would always be 0.
    return values + shift if leaf.size == 1 else values - values.mean() + shift


def symmetric(key, shape, dtype, bound):
    return uniform(key, shape, dtype, -bound, bound)


def fixed(rates: Callable[[Tree], Callable[[tuple], float]]) -> Gate:
    """A gate whose m holds the step sizes; `rates(params)` maps a path to its step size."""

    def init(key, params):
        check_params("params", params)
        rate = rates(params)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full(np.shape(x), rate(path), jnp.result_type(x)), params
        )

    return Gate(init, leafwise(jax.lax.stop_gradient), trained=False)


def under(params: Tree, head: str) -> Callable[[tuple], bool]:
    """A function that tells if a path is under `head`; ValueError if none or all of them are."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    places = {path[:n] for path in paths for n in range(1, len(path) + 1)}
    heads = [place for place in places if path_name(place) == head]
    if not heads:
        raise ValueError(f"head is {head!r}, but params has only {', '.join(_groups(paths))}")
    if len(heads) > 1:
        written = " and ".join(sorted(map(jax.tree_util.keystr, heads)))
        raise ValueError(f"head is {head!r}, which matches two places in params: {written}")

    def in_head(path):
        return path[: len(heads[0])] == heads[0]

    if all(map(in_head, paths)):
        raise ValueError(f"head is {head!r}, but that is all of params; want a part of them")
    return in_head


def _groups(paths):
    """Possible values of `head`: the paths at the first depth with more than one."""
    groups = [path_name(path) for path in paths]
    for depth in range(1, max(map(len, paths)) + 1):
        groups = sorted({path_name(path[:depth]) for path in paths})
        if len(groups) > 1:
            break
    return groups
