"""Parameters that the inner loop adapts, apart from those that it only reads."""

from collections.abc import Callable
from typing import Any

import jax

from jaxsparse.checks import leaf_names, scalar_loss
from jaxsparse.inner import adapt

Tree = Any


def inner_part(params: Tree, inner_params: Callable[[str], bool] | None) -> Tree:
    """The parameters that the inner loop adapts, None in place of the others.

    JAX takes None for a tree without leaves, so a gate that is given this tree makes mask
    parameters for these leaves alone, and `jax.tree.map` passes the others by.

    Args:
      params: any pytree of arrays.
      inner_params: whether the inner loop adapts the leaf of this path, "norm1/scale" say (as
        `leaf_names` writes it); None: all of them.

    Returns:
      A tree like `params`, some of its leaves None.

    Raises:
      ValueError: no leaf is left.

    Example:
      >>> params = {"norm": jnp.ones(3), "head": jnp.ones(2)}
      >>> inner_part(params, lambda name: name != "norm")["norm"] is None
      True

    Source: batch norm's gains and shifts stay out of the inner loop in the public code of Caccia et
    al. 2020.
    """
    if inner_params is None:
        return params
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    chosen = [inner_params(name) for name in names]
    if not any(chosen):
        raise ValueError(f"inner_params selects none of {', '.join(names)}")
    part = [x if mine else None for x, mine in zip(leaves, chosen, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), part)


def merge_params(part: Tree, params: Tree) -> Tree:
    """The leaves of `part`, and those of `params` where it has None.

    Args:
      part: as `inner_part` makes it.
      params: the whole tree.

    Returns:
      A tree like `params`.

    Example:
      >>> merge_params({"a": 1.0, "b": None}, {"a": 0.0, "b": 2.0})
      {'a': 1.0, 'b': 2.0}

    Source: the inverse of `inner_part`.
    """
    return jax.tree.map(lambda x, p: p if x is None else x, part, params, is_leaf=_is_none)


def part_like(part: Tree, params: Tree) -> Tree:
    """The leaves of `params` where `part` has one, None where it has None.

    Args:
      part: as `inner_part` makes it.
      params: the whole tree.

    Returns:
      A tree like `part`.

    Example:
      >>> part_like({"a": 1.0, "b": None}, {"a": 0.0, "b": 2.0})
      {'a': 0.0, 'b': None}

    Source: `inner_part`, with the choice taken from another tree.
    """
    return jax.tree.map(lambda x, p: None if x is None else p, part, params, is_leaf=_is_none)


def cut_leaf(tree: Tree, name: str) -> tuple[Any, list[Any], Callable[[list[Any], Any], Tree]]:
    """A leaf, all others, and the way back.

    Args:
      tree: any pytree.
      name: the leaf's, as `leaves_by_name` gives it.

    Returns:
      The leaf, the list of the others, and ``join(others, leaf)``, which makes the tree again.

    Raises:
      ValueError: there is no such leaf.

    Example:
      >>> leaf, others, join = cut_leaf({"a": 1, "b": 2, "c": 3}, "b")
      >>> leaf, others, join(others, 7)
      (2, [1, 3], {'a': 1, 'b': 7, 'c': 3})
    """
    names = leaf_names(tree)
    if name not in names:
        raise ValueError(f"there is no {name!r} in params, only {', '.join(names)}")
    place = names.index(name)
    leaves, structure = jax.tree.flatten(tree)

    def join(rest, leaf):
        return jax.tree.unflatten(structure, [*rest[:place], leaf, *rest[place:]])

    return leaves[place], leaves[:place] + leaves[place + 1 :], join


def adapt_part(
    loss_fn: Callable, part: Tree, params: Tree, step_sizes: Tree, batch: Any, steps: int
) -> tuple[Tree, dict[str, jax.Array]]:
    """`adapt` for a part of the parameters; the loss reads the others from `params`.

    ``phi_0 = part,  phi_{k+1} = phi_k - a * grad_phi L(phi_k, rest of theta)``, to first order: the
    inner gradients are constants, and the others get no gradient from the inner loop.

    Args:
      loss_fn: as in `adapt`, of the whole tree.
      part: where to start from, as `inner_part` makes it.
      params: theta, the whole tree; its leaves that `part` has, too, are not read.
      step_sizes: a, a tree like `part`; a scalar leaf is shared by the whole tensor.
      batch: what `loss_fn` takes.
      steps: K, a Python int.

    Returns:
      The adapted part, and the metrics of `adapt`.

    Raises:
      TypeError, ValueError: as in `adapt`.

    Example:
      >>> phi, _ = adapt_part(
      ...     lambda p, x: p["scale"] * (p["w"] - x) ** 2, {"w": jnp.array(1.0), "scale": None},
      ...     {"w": jnp.array(7.0), "scale": jnp.array(2.0)}, {"w": jnp.array(0.25), "scale": None},
      ...     3.0, 1)
      >>> float(phi["w"])
      3.0

    Source: `adapt`, as the public code of Caccia et al. 2020 uses it.
    """
    own_loss = scalar_loss(loss_fn)
    return adapt(
        lambda phi, rows: own_loss(merge_params(phi, params), rows), part, step_sizes, batch, steps
    )


def _is_none(x):
    return x is None
