"""The gated inner loop against PyTorch, autodiff and numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from problems import Classifier, classification_loss, classification_tasks, quick_jit, task_list

from jaxsparse import adapt
from jaxsparse.inner import meta_gradient


def square(w, target):
    return jnp.sum((w - target) ** 2)


def assert_trees_close(got, want, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def problem():
    """theta, step sizes of both signs with zeros, a support batch and a query batch."""
    theta = Classifier.init(0)
    leaves, tree = jax.tree.flatten(theta)
    rng = np.random.default_rng(1)
    sizes = [jnp.asarray(rng.normal(size=x.shape) * (x > 0), jnp.float32) for x in leaves]
    support, query = jax.tree.map(lambda x: x[0], classification_tasks(2, samples=9))
    return theta, tree.unflatten(sizes), support, query


@pytest.mark.parametrize("second_order", [False, True])
def test_quadratic_by_hand(second_order):
    """On (w - 3)^2 with step 1/4 the error halves: 2, 1, 1/2."""
    w, metrics = adapt(square, jnp.array(1.0), jnp.array(0.25), 3.0, 3, second_order=second_order)
    np.testing.assert_allclose(w, 3 - 2 / 8)
    np.testing.assert_allclose(metrics["loss"], [4, 1, 1 / 4])


def test_meta_gradients_of_the_quadratic_by_hand():
    """w_2 = 3 + (w - 3)(1 - 2a)^2; to first order dw = c, da = -c (g_0 + g_1)."""

    def outer(w, a, second_order):
        return square(adapt(square, w, a, 3.0, 2, second_order=second_order)[0], 5.0)

    at = (jnp.array(1.0), jnp.array(0.25))
    c = 2 * (2.5 - 5)
    np.testing.assert_allclose(
        jax.grad(outer, (0, 1))(*at, False), [c, -c * (2 * (1 - 3) + 2 * (2 - 3))]
    )
    np.testing.assert_allclose(jax.grad(outer, (0, 1))(*at, True), [c / 4, c * -2 * -4 * 0.5])


@pytest.mark.parametrize("second_order", [False, True])
def test_no_steps_return_the_parameters(second_order):
    theta, sizes, support, _ = problem()
    phi, metrics = adapt(classification_loss, theta, sizes, support, 0, second_order=second_order)
    jax.tree.map(np.testing.assert_array_equal, phi, theta)
    assert metrics["loss"].shape == (0,)


@pytest.mark.parametrize("steps", [1, 6])
def test_adapt_matches_pytorchs_loop(steps):
    reference = pytest.importorskip("torch_reference")
    theta, sizes, support, _ = problem()
    phi, metrics = quick_jit(adapt, static_argnums=(0, 4))(
        classification_loss, theta, sizes, support, steps
    )
    want, _, losses = reference.adapt(
        reference.mlp_loss,
        reference.to_torch(theta),
        reference.to_torch(sizes),
        reference.batch_to_torch(support),
        steps,
    )
    assert_trees_close(reference.flat(phi), {n: x.detach().numpy() for n, x in want.items()}, 1e-5)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)


def unrolled(theta, sizes, batch, steps, second_order):
    """The loop as written in the paper, for JAX to differentiate."""
    phi = theta
    for _ in range(steps):
        gradient = jax.grad(lambda p: classification_loss(p, batch)[0])(phi)
        if not second_order:
            gradient = jax.lax.stop_gradient(gradient)
        phi = jax.tree.map(lambda p, a, g: p - a * g, phi, sizes, gradient)
    return phi


@pytest.mark.parametrize("second_order", [False, True])
def test_the_rule_matches_autodiff_of_the_loop(second_order):
    theta, sizes, support, query = problem()

    def ours(theta, sizes):
        phi, _ = adapt(classification_loss, theta, sizes, support, 6, second_order=second_order)
        return classification_loss(phi, query)[0]

    def oracle(theta, sizes):
        return classification_loss(unrolled(theta, sizes, support, 6, second_order), query)[0]

    got, want = (quick_jit(jax.value_and_grad(f, (0, 1)))(theta, sizes) for f in (ours, oracle))
    assert_trees_close(got, want, rtol=2e-5, atol=2e-6)


def test_inner_gradients_are_constants_to_the_batch_too():
    """w_1 = w - a * 2 (w - x): dw_1/dx is 0 to first order, 2a to second."""

    def adapted(x, second_order):
        w, metrics = adapt(square, jnp.array(1.0), jnp.array(0.25), x, 1, second_order=second_order)
        return w + metrics["loss"][0]

    assert jax.grad(adapted)(3.0, False) == 0
    assert jax.grad(adapted)(3.0, True) == 0.5


def test_orders_differ():
    theta, sizes, support, query = problem()

    def outer(theta, second_order):
        phi, _ = adapt(classification_loss, theta, sizes, support, 3, second_order=second_order)
        return classification_loss(phi, query)[0]

    first, second = (
        quick_jit(jax.grad(outer), static_argnums=1)(theta, order)["hidden"]["w"]
        for order in (False, True)
    )
    assert jnp.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("second_order", [False, True])
def test_metrics_are_those_before_each_step_and_carry_no_gradient(second_order):
    def loss_fn(w, target):
        return square(w, target), {"w": w}

    def run(w):
        return adapt(loss_fn, w, jnp.array(0.25), 3.0, 3, second_order=second_order)[1]

    np.testing.assert_allclose(run(jnp.array(1.0))["w"], [1, 2, 2.5])
    for name in ("loss", "w"):
        assert jax.grad(lambda w, name=name: run(w)[name].sum())(jnp.array(1.0)) == 0


@pytest.mark.parametrize(
    "params",
    [
        jnp.array([1.0, -2.0]),
        (jnp.ones(2), [jnp.zeros((2, 2)), (jnp.ones(()),)]),
        {"a": [jnp.ones(3)], "b": {"c": jnp.ones((1, 2))}},
        np.ones(3, np.float32),
        1.0,
    ],
    ids=["array", "tuples", "dicts", "numpy", "number"],
)
def test_any_pytree(params):
    def loss_fn(p, batch):
        return sum(square(leaf, batch) for leaf in jax.tree.leaves(p))

    half = jax.tree.map(lambda x: jnp.full(jnp.shape(x), 0.5), params)
    for second_order in (False, True):
        phi, _ = adapt(loss_fn, params, half, 3.0, 1, second_order=second_order)
        jax.tree.map(lambda x: np.testing.assert_allclose(x, np.full(x.shape, 3.0)), phi)
        assert jax.tree.structure(phi) == jax.tree.structure(params)


def test_a_scalar_step_size_is_shared_by_its_tensor():
    theta, sizes, support, query = problem()
    scalars = jax.tree.map(lambda x: jnp.array(0.3), sizes)
    spread = jax.tree.map(lambda x: jnp.full(x.shape, 0.3), sizes)

    def outer(theta, sizes):
        phi, _ = adapt(classification_loss, theta, sizes, support, 3)
        return classification_loss(phi, query)[0]

    got, want = (quick_jit(jax.grad(outer, (0, 1)))(theta, sizes) for sizes in (scalars, spread))
    assert_trees_close(got[0], want[0])
    assert_trees_close(got[1], jax.tree.map(jnp.sum, want[1]))


THETA, _, SUPPORT, _ = problem()
ADAPT = quick_jit(
    lambda sizes, second_order: adapt(
        classification_loss, THETA, sizes, SUPPORT, 4, second_order=second_order
    )[0],
    static_argnums=1,
)


@pytest.mark.parametrize("second_order", [False, True])
@given(hnp.arrays(np.float32, 75, elements=st.sampled_from([0.0, -0.0, 0.1, -0.1, 3.0])))
def test_frozen_coordinates_never_move(second_order, values):
    """Where the step size is zero the parameter is bit for bit the same, elsewhere it moves."""
    flat, unravel = jax.flatten_util.ravel_pytree(THETA)
    phi = jax.flatten_util.ravel_pytree(ADAPT(unravel(jnp.asarray(values)), second_order))[0]
    assert np.array_equal(np.asarray(phi)[values == 0], np.asarray(flat)[values == 0])
    assert np.all(np.asarray(phi)[values != 0] != np.asarray(flat)[values != 0])


@pytest.mark.parametrize("second_order", [False, True])
def test_transformations(second_order):
    """jit, vmap and scan give what separate calls give."""
    theta, sizes, _, _ = problem()
    batch, _ = classification_tasks(2, samples=9)

    def run(batch):
        return adapt(classification_loss, theta, sizes, batch, 3, second_order=second_order)[0]

    single = quick_jit(run)
    want = [single(task) for task in task_list(batch)]
    want = jax.tree.map(lambda *xs: np.stack(xs), *want)
    assert_trees_close(quick_jit(jax.vmap(run))(batch), want)
    assert_trees_close(jax.lax.scan(lambda c, b: (c, run(b)), 0, batch)[1], want)


def test_bfloat16_gradients_are_summed_in_float32():
    """In bfloat16's eight bits, a sum of gradients of 1 stops at 256; it must reach 300."""
    w, size = jnp.zeros((), jnp.bfloat16), jnp.ones((), jnp.bfloat16)
    phi, d = jax.value_and_grad(lambda a: adapt(lambda w, _: w, w, a, None, 300)[0])(size)
    assert phi.dtype == d.dtype == jnp.bfloat16
    assert phi == d == -300


def test_bfloat16_step_sizes_of_second_order_are_summed_in_float32():
    w, size = jnp.zeros((), jnp.bfloat16), jnp.ones((), jnp.bfloat16)
    _, d, _ = meta_gradient(
        lambda w, _: w, w, size, None, lambda w, _: (w, {}), steps=300, iterates="last",
        second_order=True,
    )  # fmt: skip
    assert d.dtype == jnp.bfloat16 and d == -300


def temporary_bytes(params, sizes, batch, steps, second_order):
    def outer(params, sizes, support, query):
        phi, _ = adapt(
            classification_loss, params, sizes, support, steps, second_order=second_order
        )
        return classification_loss(phi, query)[0]

    compiled = jax.jit(jax.grad(outer, (0, 1))).lower(params, sizes, batch, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_over_the_inner_loop():
    """First order: independent of K. Second order: at most the parameters once per step."""
    theta, sizes, _, _ = problem()
    batch = (jnp.ones((2000, 5)), jnp.zeros(2000, jnp.int32))  # activations dwarf the parameters
    short, long = (temporary_bytes(theta, sizes, batch, k, False) for k in (5, 100))
    assert long <= 1.05 * short
    short, long = (temporary_bytes(theta, sizes, batch, k, True) for k in (5, 100))
    one_theta = sum(leaf.nbytes for leaf in jax.tree.leaves(theta))
    assert long - short <= 95 * 1.5 * one_theta


# Errors


def run(params=None, sizes=None, steps=2, loss_fn=square, batch=3.0):
    params = jnp.ones(2) if params is None else params
    return adapt(loss_fn, params, params if sizes is None else sizes, batch, steps)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"steps": -1}, ValueError, "^steps must be 0 or more, got -1"),
        ({"steps": 2.0}, TypeError, "^steps must be a Python int, static under jit, got 2.0"),
        ({"steps": True}, TypeError, "^steps must be a Python int"),
        ({"params": jnp.array([1, 2])}, TypeError, "^params must be floating, got int32"),
        (
            {"params": {"n": jnp.array(1)}, "sizes": {"n": jnp.array(0.1)}},
            TypeError,
            r"^params\[n\] must be floating",
        ),
        ({"sizes": jnp.array([1, 2])}, TypeError, "^step_sizes must be floating, got int32"),
        ({"sizes": [jnp.ones(2)]}, ValueError, "^step_sizes must have the tree of params: got"),
        (
            {"params": {"w": jnp.ones(2)}, "sizes": {"w": jnp.ones(3)}},
            ValueError,
            r"^step_sizes\[w\] has shape \(3,\), params has \(2,\)",
        ),
        (
            {"params": jnp.ones(2), "sizes": jnp.ones(3)},
            ValueError,
            r"^step_sizes has shape \(3,\), params has \(2,\)",
        ),
        ({"loss_fn": lambda w, x: w}, ValueError, r"^loss_fn must return a scalar loss.*\(2,\)"),
        (
            {"loss_fn": lambda w, x: (w.sum(), {"w": w})},
            ValueError,
            r"^loss_fn: metric 'w' has shape \(2,\)",
        ),
        *(
            (
                {"loss_fn": lambda w, x, name=name: (w.sum(), {name: 0.0})},
                ValueError,
                f"^loss_fn: no metric may be called '{name}'",
            )
            for name in ("loss", "inner_loss", "sparsity")
        ),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        run(**arguments)


def test_traced_steps():
    with pytest.raises(TypeError, match=r"^steps must be a Python int, static under jit"):
        jax.jit(lambda k: run(steps=k))(3)
