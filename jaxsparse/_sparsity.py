"""How many parameters the inner loop cannot change."""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse._tree import restrict
from jaxsparse.checks import check_entries, leaf_names, leaves_by_name

Tree = Any


def sparsity(step_sizes: Tree, params: Tree | None = None) -> dict[str, jax.Array]:
    """The share of parameters that the inner loop cannot change, because their step size is 0.

    ``#{i : step_i = 0} / #i``, over all parameters and for each leaf.

    Args:
      step_sizes: the output of a gate's `apply`, a tree shaped like the parameters. A scalar leaf
        is shared by the whole tensor. A leaf None is not counted.
      params: the parameters; only their tree and shapes are used. With them, a shared step size
        counts once for each parameter that shares it. With None, it counts once.

    Returns:
      `{"total": ..., "<path>": ...}`, float32 scalars in [0, 1]. The key of a leaf is its path,
      such as "conv1/kernel"; if that is "total" or ambiguous, its full path, such as "['total']".

    Raises:
      TypeError: a leaf is not an array.
      ValueError: `step_sizes` has no leaves or a leaf without entries, or `params` does not fit.

    Examples:
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
    with contextlib.suppress(ValueError):  # the trees differ, which is reported below
        params = restrict(params, step_sizes)
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
