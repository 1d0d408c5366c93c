"""Splitting a tree of parameters: the part that the inner loop adapts, or a single leaf."""

from collections.abc import Callable
from typing import Any

import jax

from jaxsparse.checks import leaf_names

Tree = Any


def partition(params: Tree, inner_params: Callable[[str], bool] | None) -> tuple[Tree, Tree]:
    """The parameters that the inner loop adapts, and the others, each a tree with None elsewhere.

    `inner_params` gets the path of a leaf, such as "norm1/scale", and returns True if the inner
    loop adapts it. For JAX, None is a tree without leaves: gates and `jax.tree.map` skip it.

    Examples:
      >>> partition({"norm": 1.0, "head": 2.0}, lambda name: name != "norm")
      ({'head': 2.0, 'norm': None}, {'head': None, 'norm': 1.0})

    Source: the public code of Caccia et al. 2020 does not adapt batch norm in the inner loop.
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
    """The leaves of `part`, or those of `params` where `part` has None.

    Examples:
      >>> combine({"a": 1.0, "b": None}, {"a": 0.0, "b": 2.0})
      {'a': 1.0, 'b': 2.0}
    """
    return jax.tree.map(lambda x, p: p if x is None else x, part, params, is_leaf=is_none)


def restrict(params: Tree, part: Tree) -> Tree:
    """The leaves of `params`, or None where `part` has None.

    Examples:
      >>> restrict({"a": 0.0, "b": 2.0}, {"a": 1.0, "b": None})
      {'a': 0.0, 'b': None}
    """
    return jax.tree.map(lambda x, p: None if x is None else p, part, params, is_leaf=is_none)


def is_none(x: Any) -> bool:
    """True for None; as `is_leaf`, it makes None a leaf."""
    return x is None


def cut_leaf(tree: Tree, name: str) -> tuple[Any, list[Any], Callable[[list[Any], Any], Tree]]:
    """One leaf, a list of all other leaves, and ``join(others, leaf)``, which restores the tree.

    `name` is the path of the leaf, as in `leaves_by_name`; ValueError if there is none.

    Examples:
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
