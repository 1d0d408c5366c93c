"""Trace-time checks of arguments. Errors name the argument, what it got and what was expected."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Tree = Any  # a pytree of arrays


def path_name(path) -> str:
    """The path of a leaf as `a/b/0`; the leaf of a bare array is called `.`."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "."


def leaf_names(tree: Tree, taken: Sequence[str] = ()) -> list[str]:
    """The paths of the leaves, in their order, without duplicates and without names in `taken`.

    A path is written as `a/b/0`. If two leaves would get the same name, because a key contains a
    slash, both paths are written in full, as `['a']['b'][0]`. An `nnx.Variable`, as in an
    `nnx.State`, has the name of its place, without JAX's key for the array in it.
    """
    paths = list(_paths(tree))
    names, full = list(map(path_name, paths)), list(map(jax.tree_util.keystr, paths))
    counts = Counter([*names, *taken])
    names = [name if counts[name] == 1 else f for name, f in zip(names, full, strict=True)]
    # A key may also look like a full path.
    return names if len({*names, *taken}) == len(names) + len(taken) else full


def _paths(tree: Tree) -> Iterator[tuple]:
    """The paths of the leaves, in their order."""
    places = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    for path, leaf in places:
        inside = jax.tree.leaves(leaf) if _is_variable(leaf) else [leaf]
        yield from [path] * len(inside)


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


def leaves_by_name(tree: Tree) -> dict[str, Any]:
    """The leaves of `tree` by the names that errors, sparsity tables and figures use."""
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def leaf_of(name: str, path: str) -> str:
    """The name of a leaf in errors: `state.params[a/b]`, or only `state.params` for an array."""
    return name if path == "." else f"{name}[{path}]"


def described(value: Any) -> str:
    """A short description for errors: `(float32[], {'x': int32[3]})`, `'text'`, `function`."""
    if isinstance(value, tuple | list):
        inside = ", ".join(map(described, value))
        text = f"[{inside}]" if isinstance(value, list) else f"({inside})"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key!r}: {described(x)}' for key, x in value.items())}}}"
    elif value is None or isinstance(value, str | bool | int | float | complex):
        text = repr(value)
    elif is_array(value):
        text = f"{value.dtype}{list(value.shape)}"
    else:
        text = getattr(value, "__name__", type(value).__name__)
    return text if len(text) <= 200 else f"{text[:200]}..."


def is_array(value: Any) -> bool:
    """True for arrays, and for numbers, which JAX accepts as arrays."""
    if isinstance(value, type):
        return False  # NumPy's types also have `dtype` and `shape`
    is_number = isinstance(value, bool | int | float | complex)
    return is_number or (hasattr(value, "dtype") and hasattr(value, "shape"))


def is_traced(value: Any) -> bool:
    """True if the value is not known at trace time."""
    return isinstance(value, jax.core.Tracer)


def check_floating(name: str, tree: Tree) -> None:
    """Raise TypeError unless every leaf of `tree` is a floating array."""
    for path, leaf in leaves_by_name(tree).items():
        where = leaf_of(name, path)
        if not is_array(leaf):
            raise TypeError(f"{where} must be a floating array, got {described(leaf)}")
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{where} must be floating, got {dtype}")


def check_params(name: str, tree: Tree) -> None:
    """Raise unless `tree` has leaves and all are floating arrays with at least one entry."""
    check_floating(name, tree)
    check_entries(name, tree)


def check_entries(name: str, tree: Tree) -> None:
    """Raise unless `tree` has leaves and all are arrays with at least one entry."""
    leaves = leaves_by_name(tree)
    if not leaves:
        raise ValueError(f"{name} has no leaves, want a tree of arrays")
    for path, leaf in leaves.items():
        where = leaf_of(name, path)
        if not is_array(leaf):
            raise TypeError(f"{where} must be an array, got {described(leaf)}")
        if 0 in np.shape(leaf):
            raise ValueError(f"{where} has shape {np.shape(leaf)}: want one value or more")


def check_number(name: str, value: Any, least: float = -math.inf) -> None:
    """Raise unless `value` is one finite real number, `least` or more.

    For a traced value, only the shape and dtype are checked.
    """
    wanted = "a finite number" if least == -math.inf else f"a finite number, {least:g} or more"
    if not is_array(value) or jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        raise TypeError(f"{name} must be {wanted}, got {described(value)}")
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must be {wanted}, got shape {jnp.shape(value)}")
    if not is_traced(value) and not (is_finite(value) and value >= least):
        raise ValueError(f"{name} must be {wanted}, got {value}")


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether `value` is an integer of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a number is finite as a float; a huge integer is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_scale(name: str, scale: Sequence[float], channels: int, zero: bool = True) -> None:
    """Raise ValueError unless `scale` has a finite value per channel; `zero`: 0 is allowed."""
    if len(scale) != channels:
        got = tuple(scale)
        raise ValueError(f"{name} must have {channels} values, one per channel, got {got}")
    if not all(is_finite(x) and (zero or x) for x in scale):
        wanted = "finite" if zero else "finite and not 0"
        raise ValueError(f"{name} must be {wanted}, got {tuple(scale)}")


def copy_arrays(name: str, tree: Tree) -> Tree:
    """A copy of floating arrays, for a state to hold; errors as in `check_params`.

    With the copy, the state can be donated without deleting the caller's arrays.
    """
    check_params(name, tree)
    # The dtype is explicit: a weakly typed leaf would become strongly typed in the first step, and
    # the second step would be compiled again.
    return jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x), copy=True), tree)


def check_like(name: str, tree: Tree, reference_name: str, reference: Tree) -> None:
    """Raise ValueError unless `tree` has the structure and shapes of `reference`.

    A scalar leaf is accepted: one value that the whole tensor shares.
    """
    got: Any = jax.tree.structure(tree)
    wanted: Any = jax.tree.structure(reference)
    if got != wanted:
        raise ValueError(f"{name} must have the tree of {reference_name}: got {got}, want {wanted}")
    wanted_shapes = map(jnp.shape, jax.tree.leaves(reference))
    for (path, leaf), want in zip(leaves_by_name(tree).items(), wanted_shapes, strict=True):
        shape = jnp.shape(leaf)
        if shape not in (want, ()):
            raise ValueError(
                f"{leaf_of(name, path)} has shape {shape}, {reference_name} has {want}"
            )


def check_leading_axis(name: str, tree: Tree) -> int:
    """The length of the leading task axis of all leaves; ValueError if they differ."""
    sizes = {path: jnp.shape(leaf)[:1] for path, leaf in leaves_by_name(tree).items()}
    if not sizes:
        raise ValueError(f"{name} has no leaves, want arrays with a leading task axis")
    if () in sizes.values() or len(set(sizes.values())) > 1:
        listed = ", ".join(f"{path}: {size or 'scalar'}" for path, size in sizes.items())
        raise ValueError(f"{name} must have the same leading task axis in every leaf, got {listed}")
    (size,) = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(f"{name} has no tasks: its leading axis has length 0")
    return size


def check_rows(name: str, tree: Tree, axes: int = 1) -> tuple[int, ...]:
    """The lengths of the leading axes of all leaves; ValueError if they differ."""
    sizes = {path: jnp.shape(leaf)[:axes] for path, leaf in leaves_by_name(tree).items()}
    size = next(iter(sizes.values()), ())
    if len(size) < axes or 0 in size or set(sizes.values()) != {size}:
        listed = ", ".join(f"{path}: {got or 'scalar'}" for path, got in sizes.items())
        lead = "leading row axis" if axes == 1 else f"{axes} leading axes"
        raise ValueError(
            f"{name} must have the same {lead} in every leaf, got {listed or 'no leaves'}"
        )
    return size


def check_like_rows(
    name: str, tree: Tree, reference_name: str, reference: Tree, *, axes: int = 1, behind: int = 1
) -> tuple[int, ...]:
    """As `check_rows`; the rows must also have the tree, shapes and dtypes of `reference`'s rows.

    The rows of `tree` come after `axes` leading axes, those of `reference` after `behind`. With
    `axes` 0, `tree` is one row.
    """
    got: Any = jax.tree.structure(tree)
    want: Any = jax.tree.structure(reference)
    if got != want:
        raise ValueError(f"{name} must have the tree of {reference_name}: got {got}, want {want}")
    size = check_rows(name, tree, axes)
    wanted = leaves_by_name(reference)
    for path, leaf in leaves_by_name(tree).items():
        kind = jnp.shape(leaf)[axes:], jnp.result_type(leaf)
        want = jnp.shape(wanted[path])[behind:], jnp.result_type(wanted[path])
        if kind != want:
            shape = "rows of shape" if axes else "shape"
            raise ValueError(
                f"{leaf_of(name, path)} has {shape} {kind[0]}, {kind[1]}; "
                f"{reference_name} has {want[0]}, {want[1]}"
            )
    return size


def check_weights(name: str, weights: Any, shape: tuple[int, ...]) -> jax.Array:
    """`weights` as an array; lists are accepted. Raise unless it is floating, one per row."""
    weights = jnp.asarray(weights)
    if weights.shape != shape:
        raise ValueError(f"{name} has shape {weights.shape}, want one per row, {shape}")
    check_floating(name, weights)
    return weights


def check_bound(name: str, bound: float | None) -> None:
    """Raise ValueError unless `bound` is None or positive."""
    if bound is not None and not bound > 0:
        raise ValueError(f"{name} must be positive or None, got {bound}")


def check_steps(name: str, steps: Any, least: int = 0) -> None:
    """Raise unless `steps` is an integer of Python or NumPy that is `least` or more."""
    if not is_integer(steps):
        raise TypeError(f"{name} must be a Python int, static under jit, got {steps!r}")
    if steps < least:
        raise ValueError(f"{name} must be {least} or more, got {steps}")


def scalar_loss(loss_fn: Callable, taken: Iterable[str] = ()) -> Callable:
    """`loss_fn` as `(params, batch) -> (loss, metrics)`, with checks of what it returns.

    Its metrics may not have names in `taken`, which the step uses itself.
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function (params, batch) -> {_LOSS}, got {loss_fn!r}")

    def loss_and_metrics(params, batch):
        out = loss_fn(params, batch)
        loss, metrics = out if isinstance(out, tuple) and len(out) == 2 else (out, {})
        if not is_array(loss) or not isinstance(metrics, dict):
            raise TypeError(f"loss_fn must return {_LOSS}, got {described(out)}")
        if jnp.shape(loss) != ():
            raise ValueError(f"loss_fn must return a scalar loss, got shape {jnp.shape(loss)}")
        if not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise TypeError(f"loss_fn must return a floating loss, got {jnp.result_type(loss)}")
        _check_names(metrics, {"loss", "inner_loss", "sparsity", *taken})
        for name, value in metrics.items():
            if name in getattr(loss_fn, "vector_metrics", ()):
                continue
            if not isinstance(name, str) or not is_array(value):
                got = f"metric {name!r}: {described(value)}"
                raise TypeError(f"loss_fn must return {_LOSS}, got {got}")
            if jnp.shape(value) != ():
                raise ValueError(f"loss_fn: metric {name!r} has shape {jnp.shape(value)}, want ()")
        return loss, metrics

    return loss_and_metrics


def _check_names(metrics: dict[str, Any], taken: Iterable[str]) -> None:
    """Raise ValueError if a metric of a loss function has a name in `taken`."""
    for name in sorted({*taken} & metrics.keys(), key=str):
        raise ValueError(f"loss_fn: no metric may be called {name!r}, a name the library uses")


def with_metrics(own: dict[str, jax.Array], metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The metrics of a step and those of the loss function; ValueError if they share a name."""
    _check_names(metrics, own)
    return own | metrics


_LOSS = "a scalar, or (scalar, dict of scalars)"
