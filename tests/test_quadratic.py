"""The bounded quadratic program against quadprog, in float64, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog
from problems import quick_jit

from jaxsparse.continual.quadratic import solve_bounded_qp

INSTANCES = 12
RIDGE = 1e-3
# The precision of float32, relative to the sums of the terms' absolute values.
OBJECTIVE, OPTIMALITY = 1e-6, 1e-5

solve, solve_all = quick_jit(solve_bounded_qp), quick_jit(jax.vmap(solve_bounded_qp))


def well_conditioned(random, size):
    return random.normal(size=(size, 3 * size))


def rank_deficient(random, size):
    return random.normal(size=(size, max(1, size // 3)))


def nearly_parallel(random, size):
    return random.normal(size=(1, 50)) + 0.05 * random.normal(size=(size, 50))


def of_many_scales(random, size):
    return random.normal(size=(size, 2 * size)) * np.exp(2 * random.normal(size=(size, 1)))


def ill_conditioned(random, size):
    rotation, _ = np.linalg.qr(random.normal(size=(size, size)))
    return rotation * np.logspace(0, -4, size)


def few_directions(random, size):
    common = 0.3 * random.normal(size=(size, 4)) @ random.normal(size=(4, 60))
    return common + 0.1 * random.normal(size=(size, 60)) - 0.1


def duplicated(random, size):
    return np.repeat(random.normal(size=(-(-size // 2), 30)), 2, axis=0)[:size]


GRADIENTS = [
    well_conditioned,
    rank_deficient,
    nearly_parallel,
    of_many_scales,
    ill_conditioned,
    few_directions,
    duplicated,
]


def instance(random, gradients, size):
    """P, q and a bound as in GEM: Gram matrix, inner products with a gradient, margin."""
    M = gradients(random, size)
    g = np.sqrt(np.mean(M**2)) * random.normal(size=M.shape[1]) - random.random() * M.mean(0)
    P, q = M @ M.T + RIDGE * np.eye(size), M @ g
    return P.astype(np.float32), q.astype(np.float32), np.float32(random.choice([0, 0.1, 0.5]))


def by_quadprog(P, q, lower):
    P = (P + P.T) / 2
    return quadprog.solve_qp(P, -q, np.eye(len(q)), np.broadcast_to(lower, q.shape).copy())[0]


def assert_optimal(v, P, q, lower):
    """As low as quadprog's minimum, within the bounds, and optimal by all conditions."""
    v, P, q = (np.asarray(x, np.float64) for x in (v, P, q))
    best = by_quadprog(P, q, float(lower))
    terms = np.abs(P) @ np.abs(v) + np.abs(q)
    objectives = [0.5 * x @ P @ x + q @ x for x in (v, best)]
    assert objectives[0] - objectives[1] <= OBJECTIVE * np.abs(v) @ terms
    assert np.all(v >= lower)
    slope = P @ v + q
    assert np.all(slope >= -OPTIMALITY * terms)
    assert np.all(slope[v > lower] <= OPTIMALITY * terms[v > lower])


@pytest.mark.parametrize("size", [1, 4, 20])
@pytest.mark.parametrize("gradients", GRADIENTS, ids=lambda f: f.__name__)
def test_minimum_matches_quadprog(gradients, size):
    random = np.random.default_rng(size)
    problems = [instance(random, gradients, size) for _ in range(INSTANCES)]
    solutions = solve_all(*map(np.stack, zip(*problems, strict=True)))
    for v, problem in zip(solutions, problems, strict=True):
        assert_optimal(v, *problem)


@pytest.mark.parametrize("gradients", [rank_deficient, few_directions], ids=lambda f: f.__name__)
def test_a_hundred_variables(gradients):
    random = np.random.default_rng(0)
    for _ in range(3):
        problem = instance(random, gradients, 100)
        assert_optimal(solve(*problem), *problem)


def test_by_hand():
    """Both free: P v = -q. With a bound of 1 on the first: v_2 = (5 - 1) / 2."""
    P, q = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([-4.0, -5.0])
    np.testing.assert_allclose(solve(P, q, 0.0), [1, 2], rtol=1e-6)
    np.testing.assert_allclose(solve(P, q, jnp.array([3.0, 0.0])), [3, 1], rtol=1e-6)
    # The first at its bound: v_2 = (4 + 1) / 2. Then both at their bounds.
    np.testing.assert_allclose(solve(P, jnp.array([1.0, -4.0]), -1.0), [-1, 2.5], rtol=1e-6)
    np.testing.assert_array_equal(solve(P, -q, 0.5), [0.5, 0.5])


def test_inactive_entries_have_no_effect():
    random = np.random.default_rng(7)
    P, q, _ = instance(random, few_directions, 8)
    lower = random.random(8).astype(np.float32)
    active = np.array([True, False, True, True, False, True, False, True])
    kept = by_quadprog(*(np.float64(x) for x in (P[active][:, active], q[active], lower[active])))
    P[~active], P[:, ~active], q[~active], lower[~active] = np.nan, np.inf, np.nan, np.inf
    v = solve(P, q, lower, active)
    np.testing.assert_allclose(v[active], kept, rtol=1e-4)
    np.testing.assert_array_equal(v[~active], 0)
    np.testing.assert_array_equal(solve(P, q, lower, np.zeros(8, bool)), np.zeros(8))


def test_flat_directions_do_no_harm():
    """Gradients so large that float32 loses the ridge: P has rank two, factorisation fails."""
    random = np.random.default_rng(0)
    for _ in range(INSTANCES):
        M = 1000 * (random.normal(size=(20, 2)) + 0.5)
        P = (M @ M.T + RIDGE * np.eye(20)).astype(np.float32)
        q = (M @ (1000 * random.normal(size=2))).astype(np.float32)
        v = np.asarray(solve(P, q, 0.0), np.float64)
        terms = np.abs(P) @ np.abs(v) + np.abs(q)
        slope = P @ v + q
        assert np.all(v >= 0)
        assert np.all(slope >= -OPTIMALITY * terms)
        assert np.all(slope[v > 0] <= OPTIMALITY * terms[v > 0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((jnp.eye(3), jnp.ones(2), 0.0), ValueError, r"\[T, T\] and \[T\], got \(3, 3\)"),
        ((jnp.eye(2, dtype=int), jnp.ones(2), 0.0), TypeError, "P must be floating, got int32"),
        ((jnp.eye(2), jnp.ones(2), jnp.zeros(3)), ValueError, r"lower has shape \(3,\)"),
        ((jnp.eye(2), jnp.ones(2), 0.0, jnp.ones(2)), ValueError, "must be bool .* got float32"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        solve_bounded_qp(*arguments)
