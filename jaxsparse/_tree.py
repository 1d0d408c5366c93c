"""Parts of a tree of parameters: those that the inner loop adapts, and single leaves."""

from collections.abc import Callable
from typing import Any

import jax

from jaxsparse.checks import leaf_names

Tree = Any


def partition(params: Tree, inner_params: Callable[[str], bool] | None) -> tuple[Tree, Tree]:
    """The parameters that the inner loop adapts, and the others.

    JAX takes None for a tree without leaves, so a gate that is given the first tree makes mask
    parameters for its leaves alone, and `jax.tree.map` passes the others by.

    Args:
      params: any pytree of arrays.
      inner_params: whether the inner loop adapts the leaf of this path, "norm1/scale" say (as
        `leaf_names` writes it); None: all of them.

    Returns:
      Two trees like `params`, each with None in place of the other's leaves.

    Raises:
      ValueError: `inner_params` selects no leaf.

    Example:
      >>> params = {"norm": jnp.ones(3), "head": jnp.ones(2)}
      >>> partition(params, lambda name: name != "norm")[0]["norm"] is None
      True

    Source: batch norm's gains and shifts stay out of the inner loop in the public code of Caccia et
    al. 2020.
    """
    if inner_params is None:
        return params, jax.tree.map(lambda _: None, params)
    names, (leaves, structure) = leaf_names(params), jax.tree.flatten(params)
    chosen = [inner_params(name) for name in names]
    if not any(chosen):
        raise ValueError(f"inner_params selects none of {', '.join(names)}")
    pairs = [(x, None) if mine else (None, x) for x, mine in zip(leaves, chosen, strict=True)]
    inner, others = (jax.tree.unflatten(structure, part) for part in zip(*pairs, strict=True))
    return inner, others


def combine(part: Tree, params: Tree) -> Tree:
    """The leaves of `part`, and those of `params` where it has None.

    Args:
      part: a part of a tree, as `partition` makes it.
      params: the whole tree, or the other part.

    Returns:
      A tree like `params`.

    Example:
      >>> combine({"a": 1.0, "b": None}, {"a": 0.0, "b": 2.0})
      {'a': 1.0, 'b': 2.0}

    Source: the inverse of `partition`.
    """
    return jax.tree.map(lambda x, p: p if x is None else x, part, params, is_leaf=is_none)


def restrict(params: Tree, part: Tree) -> Tree:
    """The leaves of `params` where `part` has one, None where it has None.

    Args:
      params: the whole tree.
      part: a part of a tree, as `partition` makes it.

    Returns:
      A tree like `part`.

    Example:
      >>> restrict({"a": 0.0, "b": 2.0}, {"a": 1.0, "b": None})
      {'a': 0.0, 'b': None}

    Source: `partition`, with the choice taken from another tree.
    """
    return jax.tree.map(lambda x, p: None if x is None else p, part, params, is_leaf=is_none)


def is_none(x: Any) -> bool:
    """Whether a node of a tree is None, to be taken for a leaf."""
    return x is None


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
