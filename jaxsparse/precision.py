"""Matrix products in float32 by default, in the functions that make them and in their gradients."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax


def float32_by_default(function: Callable) -> Callable:
    """`function`, traced with float32 matrix products unless the caller has set a precision.

    JAX's own default lets GPUs round the factors to TensorFloat-32. Used inside `jax.jit`, whose
    cache tells apart what the caller has set; derivatives are traced within, custom ones too.

    Args:
      function: any function of JAX arrays.

    Returns:
      The function, which heeds `jax.default_matmul_precision` when that is set.

    Example:
      >>> product = jax.jit(float32_by_default(jnp.dot))
    """

    @functools.wraps(function)
    def traced(*args, **kwargs):
        if jax.config.jax_default_matmul_precision is not None:  # type: ignore[attr-defined]
            return function(*args, **kwargs)
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return traced


def custom_vjp(function: Callable, nondiff_argnums: Sequence[int] = ()) -> Any:
    """`jax.custom_vjp`, whose rules make their products in the precision of the call.

    JAX traces the rules when a gradient is taken: where a caller differentiates a function of ours
    from without, that is after `float32_by_default` has ended.

    Args:
      function: as for `jax.custom_vjp`.
      nondiff_argnums: as for `jax.custom_vjp`.

    Returns:
      The function, with a `defvjp` as `jax.custom_vjp` has it.

    Example:
      >>> @custom_vjp
      ... def product(x, y):
      ...     return x @ y
      >>> product.defvjp(lambda x, y: (x @ y, (x, y)), lambda saved, g: (g @ saved[1].T, None))
    """

    def at(rule):
        # Not `functools.wraps`, which would give it the rule's signature, one argument short.
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
