"""A small quadratic program with lower bounds, solved inside compiled code."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.checks import check_floating
from jaxsparse.nn.products import exact_product


class _Iterate(NamedTuple):
    """Where the search stands; variables that are not free lie at their bound."""

    point: jax.Array
    free: jax.Array
    iteration: jax.Array
    done: jax.Array


def solve_bounded_qp(
    P: jax.Array, q: jax.Array, lower: jax.Array | float, active: jax.Array | None = None
) -> jax.Array:
    """The minimum of a strictly convex quadratic function under lower bounds.

    ``argmin_v 1/2 v' P v + q' v   such that v >= lower``

    An active-set search: the variable whose bound holds the function up most is freed and the
    minimum over the free ones approached, up to the first of them that meets its bound, until no
    bound holds the function up. At most 3 T + 3 steps of one factorisation each; usually about as
    many as variables end up free. No step leaves the bounds or ascends.

    In float32 all conditions of optimality hold to about 1e-5 of the terms that they are sums of.
    Where P in some direction is less than about 1e-7 T of its diagonal, such a v need not be near
    the exact one in that direction.

    Args:
      P: [T, T], floating, symmetric positive definite.
      q: [T], floating.
      lower: [T] or a scalar, the bounds.
      active: bool [T]: False takes an entry out, as if its rows and columns were deleted; what
        stands there does not matter. None: all take part.

    Returns:
      v [T], exactly 0 where not active.

    Raises:
      TypeError, ValueError: shapes or dtypes that do not fit; the message names them.

    Example:
      >>> solve_bounded_qp(jnp.eye(2), jnp.array([-3.0, 1.0]), 0.0).round().tolist()
      [3.0, 0.0]

    Source: Lawson & Hanson 1974, Solving least squares problems, Algorithm NNLS (23.10).
    """
    _check_arguments(P, q, lower, active)
    active = jnp.ones(q.shape, bool) if active is None else active
    P = jnp.where(active[:, None] & active[None, :], P, jnp.eye(len(q), dtype=P.dtype))
    lower = jnp.where(active, jnp.asarray(lower, P.dtype), 0)
    # As y >= 0 from the bounds on, in units that make the diagonal of P one.
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
    """Towards the minimum over the free variables; there, one more is freed."""
    direction = _newton_direction(A, b, at.point, at.free)
    room = jnp.where(at.free & (direction < 0), at.point / -direction, jnp.inf)
    length = jnp.minimum(1, jnp.min(room))
    blocked = (room == length) & (length < 1)
    point = jnp.where(blocked, 0, jnp.maximum(at.point + length * direction, 0))
    free = at.free & ~blocked
    entering = (length == 1) & _entering(A, b, point, free)
    # A freed variable cannot be blocked at once but by rounding, and would be so for ever.
    stuck = length == 0
    done = ((length == 1) & ~jnp.any(entering)) | stuck
    return _Iterate(point, free | entering, at.iteration + 1, done)


def _newton_direction(A, b, point, free):
    # The diagonal is raised by what rounding may take from the factor. The gradient is exact and
    # every step solves anew, so that leaves no error of its own.
    raised = jnp.where(free[:, None] & free[None, :], A, 0)
    raised += jnp.diag(jnp.where(free, len(b) * jnp.finfo(b.dtype).eps, 1))
    factor = jnp.linalg.cholesky(raised, symmetrize_input=False)
    gradient = jnp.where(free, exact_product(A, point) + b, 0)
    return -jax.scipy.linalg.cho_solve((factor, True), gradient)


def _entering(A, b, point, free):
    """One-hot: the variable at its bound that the function falls steepest in; none: all False."""
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
