"""A small quadratic program with lower bounds, solved inside compiled code."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_floating
from jaxsparse.nn.products import exact_product


class _Iterate(NamedTuple):
    """The state of the search. Variables that are not free are at their bound."""

    point: jax.Array
    free: jax.Array
    iteration: jax.Array
    done: jax.Array


def solve_bounded_qp(
    P: jax.Array, q: jax.Array, lower: jax.Array | float, active: jax.Array | None = None
) -> jax.Array:
    """The minimum of a strictly convex quadratic function under lower bounds.

    ``argmin_v 1/2 v' P v + q' v   such that v >= lower``

    P is [T, T], floating, symmetric and positive definite; q is [T]; lower is [T] or a scalar. If
    `active` [T] is False for an entry, the entry is ignored as if it were deleted from P and q, and
    its v is 0.

    An active-set method. It frees the variable at its bound with the steepest descent, then moves
    towards the minimum over the free variables until one of them reaches its bound. It stops when
    no variable at its bound has a descent direction. Every step needs one factorisation, stays
    within the bounds and does not increase the function. There are at most 3 T + 3 steps, usually
    about as many as there are free variables at the end.

    In float32, the optimality conditions hold to about 1e-5, relative to the terms in them. Along
    directions in which P is below about 1e-7 T of its diagonal, v may be far from the exact v.

    Source: Lawson & Hanson 1974, Solving least squares problems, Algorithm NNLS (23.10).
    """
    _check_arguments(P, q, lower, active)
    active = jnp.ones(q.shape, bool) if active is None else active
    P = jnp.where(active[:, None] & active[None, :], P, jnp.eye(len(q), dtype=P.dtype))
    lower = jnp.where(active, jnp.asarray(lower, P.dtype), 0)
    # Substitute v = lower + unit * y with y >= 0; unit scales the diagonal of P to one.
    unit = 1 / jnp.sqrt(jnp.diagonal(P))
    A = P * unit[:, None] * unit[None, :]
    b = jnp.where(active, unit * (q + exact_product(P, lower)), 0)
    point, free = jnp.zeros_like(b), jnp.zeros(b.shape, bool)
    entering = _entering(A, b, point, free)
    start = _Iterate(point, entering, jnp.zeros((), jnp.int32), ~jnp.any(entering))
    end = jax.lax.while_loop(
        lambda at: ~at.done & (at.iteration < 3 * len(q) + 3), lambda at: _step(A, b, at), start
    )
    return lower + unit * end.point


def _step(A, b, at):
    """Move towards the minimum over the free variables; if it is reached, free one more."""
    direction = _newton_direction(A, b, at.point, at.free)
    room = jnp.where(at.free & (direction < 0), at.point / -direction, jnp.inf)
    length = jnp.minimum(1, jnp.min(room))
    blocked = (room == length) & (length < 1)
    point = jnp.where(blocked, 0, jnp.maximum(at.point + length * direction, 0))
    free = at.free & ~blocked
    entering = (length == 1) & _entering(A, b, point, free)
    # Only rounding can block a variable that was just freed, and this would repeat forever.
    stuck = length == 0
    done = ((length == 1) & ~jnp.any(entering)) | stuck
    return _Iterate(point, free | entering, at.iteration + 1, done)


def _newton_direction(A, b, point, free):
    # Add to the diagonal what rounding may subtract in the factorisation. This causes no error in
    # the result, as the gradient is exact and computed again in every step.
    raised = jnp.where(free[:, None] & free[None, :], A, 0)
    raised += jnp.diag(jnp.where(free, len(b) * jnp.finfo(b.dtype).eps, 1))
    factor = jnp.linalg.cholesky(raised, symmetrize_input=False)
    gradient = jnp.where(free, exact_product(A, point) + b, 0)
    return -jax.scipy.linalg.cho_solve((factor, True), gradient)


def _entering(A, b, point, free):
    """One-hot: the variable at its bound with the steepest descent; all False if there is none."""
    gradient = exact_product(A, point) + b
    rounding = 4 * jnp.finfo(b.dtype).eps * (exact_product(jnp.abs(A), point) + jnp.abs(b))
    falls = jnp.where(~free & (gradient < -rounding), gradient, 0)
    return (jnp.arange(len(b)) == jnp.argmin(falls)) & (falls < 0)


def _check_arguments(P, q, lower, active):
    check_floating("P", P)
    check_floating("q", q)
    if jnp.ndim(q) != 1 or jnp.shape(P) != (len(q), len(q)):
        raise ValueError(f"P and q must be [T, T] and [T], got {jnp.shape(P)} and {jnp.shape(q)}")
    if jnp.shape(lower) not in ((), q.shape):
        raise ValueError(f"lower has shape {jnp.shape(lower)}, want () or {q.shape}")
    if active is not None and (active.dtype.name, active.shape) != ("bool", q.shape):
        raise ValueError(f"active must be bool {q.shape}, got {active.dtype} {active.shape}")
