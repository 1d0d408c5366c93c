"""Matrix products in float32 by default, in functions and in their gradients."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax


def float32_by_default(function: Callable) -> Callable:
    """`function` with float32 matrix products, unless `jax.default_matmul_precision` is set.

    JAX's default lets GPUs round the factors to TensorFloat-32. Apply this inside `jax.jit`: the
    precision is part of the key of JIT's cache.
    """

    @functools.wraps(function)
    def traced(*args, **kwargs):
        if jax.config.jax_default_matmul_precision is not None:  # type: ignore[attr-defined]
            return function(*args, **kwargs)
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return traced


def custom_vjp(function: Callable, nondiff_argnums: Sequence[int] = ()) -> Any:
    """`jax.custom_vjp` whose rules use the matrix precision that was set at the call.

    JAX traces the rules when it computes a gradient. If the caller differentiates our function,
    `float32_by_default` has already returned by then.
    """

    def at(rule):
        # No `functools.wraps`: it would copy the signature of `rule`, which lacks `precision`.
        def traced(precision, *args):
            with jax.default_matmul_precision(precision):
                return rule(*args)

        traced.__name__ = rule.__name__
        return traced

    with_precision = jax.custom_vjp(
        at(function), nondiff_argnums=(0, *(place + 1 for place in nondiff_argnums))
    )

    @functools.wraps(function)
    def call(*args):
        return with_precision(jax.config.jax_default_matmul_precision, *args)  # type: ignore[attr-defined]

    def defvjp(forward, backward):
        with_precision.defvjp(at(forward), at(backward))

    call.defvjp = defvjp  # type: ignore[attr-defined]
    return call
