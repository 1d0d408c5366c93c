"""Trace-time checks whose errors name the argument, what it got and what it wanted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # a pytree of arrays


def path_name(path) -> str:
    """The path of a leaf as `a/b/0`; the leaf of a bare array is called `.`."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "."


def leaves_by_name(tree: Tree) -> dict[str, Any]:
    """The leaves of `tree` under the names that errors, sparsity tables and figures use."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def check_floating(name: str, tree: Tree) -> None:
    """Raise TypeError unless every leaf of `tree` is a floating array."""
    for path, leaf in leaves_by_name(tree).items():
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            where = name if path == "." else f"{name}[{path}]"
            raise TypeError(f"{where} must be floating, got {dtype}")


def check_like(name: str, tree: Tree, reference_name: str, reference: Tree) -> None:
    """Raise ValueError unless `tree` has the structure of `reference`, leaves of its shapes.

    A scalar leaf stands for one value shared by the whole tensor and is accepted.
    """
    got: Any = jax.tree.structure(tree)
    wanted: Any = jax.tree.structure(reference)
    if got != wanted:
        raise ValueError(f"{name} must have the tree of {reference_name}: got {got}, want {wanted}")
    wanted_shapes = leaves_by_name(reference)
    for path, leaf in leaves_by_name(tree).items():
        shape, want = jnp.shape(leaf), jnp.shape(wanted_shapes[path])
        if shape not in (want, ()):
            raise ValueError(f"{name}[{path}] has shape {shape}, {reference_name} has {want}")


def check_leading_axis(name: str, tree: Tree) -> int:
    """The length of the axis that all leaves of `tree` lead with; ValueError if they differ."""
    sizes = {path: jnp.shape(leaf)[:1] for path, leaf in leaves_by_name(tree).items()}
    if not sizes:
        raise ValueError(f"{name} has no leaves, want arrays with a leading task axis")
    if () in sizes.values() or len(set(sizes.values())) > 1:
        listed = ", ".join(f"{path}: {size or 'scalar'}" for path, size in sizes.items())
        raise ValueError(f"{name} must lead with one task axis in every leaf, got {listed}")
    (size,) = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(f"{name} holds no task: its leading axis has length 0")
    return size


def check_steps(name: str, steps: Any) -> None:
    """Raise unless `steps` is a Python integer that is zero or more."""
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"{name} must be a Python int known when tracing, got {steps!r}")
    if steps < 0:
        raise ValueError(f"{name} must be 0 or more, got {steps}")


def scalar_loss(loss_fn: Callable) -> Callable:
    """`loss_fn` as `(params, batch) -> (loss, metrics)`, whichever of the two forms it has."""

    def loss_and_metrics(params, batch):
        out = loss_fn(params, batch)
        loss, metrics = out if isinstance(out, tuple) else (out, {})
        if jnp.shape(loss) != ():
            raise ValueError(f"loss_fn must return a scalar loss, got shape {jnp.shape(loss)}")
        for name in {"loss", "inner_loss", "sparsity"} & set(metrics):
            raise ValueError(f"loss_fn: no metric may be called {name!r}, a name the library uses")
        for name, value in metrics.items():
            if jnp.shape(value) != ():
                raise ValueError(f"loss_fn: metric {name!r} has shape {jnp.shape(value)}, want ()")
        return loss, metrics

    return loss_and_metrics
