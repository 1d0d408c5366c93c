"""The gates against values by hand, NumPy and the statistics of their initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import gates
from jaxsparse.checks import leaves_by_name

pytestmark = pytest.mark.usefixtures("strict_ranks")

M = [-1.0, -0.0, 0.0, 0.5]
PARAMS = {
    "body": {"w": jnp.ones((200, 100)), "b": jnp.ones(4000)},
    "head": {"w": jnp.ones((100, 5)), "b": jnp.ones(5)},
}

# gate: (step sizes of M, derivative of sum(step) with respect to M)
BY_HAND = {
    "binary": (gates.binary(0.25), [0, 0.25, 0.25, 0.25], [0.25] * 4),
    "half slope": (gates.binary(0.25, slope=0.5), [0, 0.25, 0.25, 0.25], [0.125] * 4),
    "relu": (gates.relu(), [0, 0, 0, 0.5], [1, 1, 1, 1]),
    "rectified": (gates.rectified(0.1), [0, 0, 0, 0.5], [0, 0, 0, 1]),
    "linear": (gates.linear(0.1), [-1, 0, 0, 0.5], [1, 1, 1, 1]),
    "shared": (gates.shared(0.1), [-1, 0, 0, 0.5], [1, 1, 1, 1]),
    "constant": (gates.constant(0.1), [-1, 0, 0, 0.5], [0, 0, 0, 0]),
    "head only": (gates.head_only(0.1), [-1, 0, 0, 0.5], [0, 0, 0, 0]),
    "body only": (gates.body_only(0.1), [-1, 0, 0, 0.5], [0, 0, 0, 0]),
}


@pytest.mark.parametrize("gate, sizes, slopes", BY_HAND.values(), ids=BY_HAND)
def test_value_and_derivative(gate, sizes, slopes):
    m = {"w": jnp.array(M)}
    weights = jnp.array([1.0, 2.0, -3.0, 4.0])
    np.testing.assert_allclose(gate.apply(m, None)["w"], sizes)
    d_m = jax.grad(lambda m: jnp.sum(weights * gate.apply(m, None)["w"]))(m)["w"]
    np.testing.assert_allclose(d_m, weights * np.array(slopes))
    assert not gate.stochastic


@pytest.mark.parametrize(
    "gate, body, head",
    [
        (gates.constant(0.3), 0.3, 0.3),
        (gates.head_only(0.3), 0.0, 0.3),
        (gates.body_only(0.3), 0.3, 0.0),
        (gates.head_only(0.3, head="body"), 0.3, 0.0),
        (gates.relu(0.3), 0.3, 0.3),
        (gates.rectified(0.3), 0.3, 0.3),
        (gates.linear(-0.3), -0.3, -0.3),
        (gates.binary(0.3, init=0.1), 0.3, 0.3),
        (gates.binary(0.3, init=-0.1), 0.0, 0.0),
    ],
)
def test_initial_step_sizes(gate, body, head):
    m = gate.init(jax.random.key(0), PARAMS)
    sizes = gate.apply(m, None)
    for name, leaf in leaves_by_name(sizes).items():
        want = head if name.startswith("head") else body
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, want, np.float32), err_msg=name)
    assert jax.tree.map(jnp.shape, sizes) == jax.tree.map(jnp.shape, PARAMS)


def test_shared_rates_are_one_for_each_tensor():
    m = gates.shared(0.3).init(jax.random.key(0), PARAMS)
    assert jax.tree.map(jnp.shape, m) == jax.tree.map(lambda x: (), PARAMS)
    np.testing.assert_allclose(jax.tree.leaves(m), [0.3] * 4, rtol=1e-6)
    drawn = jax.tree.leaves(gates.shared((-0.1, 0.1)).init(jax.random.key(0), PARAMS))
    assert len({float(x) for x in drawn}) == 4 and np.abs(drawn).max() < 0.1
    # d loss / d rate of a tensor is the sum over its entries.
    params, gradient = {"w": jnp.arange(3.0)}, jnp.array([1.0, -2.0, 4.0])
    d_m = jax.grad(lambda m: jnp.sum((params["w"] - m["w"] * gradient) ** 2))({"w": jnp.array(0.5)})
    np.testing.assert_allclose(d_m["w"], -2 * gradient @ (params["w"] - 0.5 * gradient))
    with pytest.raises(TypeError, match="params"):
        gates.shared(0.1).init(jax.random.key(0), {"w": jnp.ones(2, int)})


def test_head_is_a_whole_path_component():
    m = gates.head_only(0.3).init(jax.random.key(0), {"head": jnp.ones(1), "header": jnp.ones(1)})
    assert m["header"] == 0 and m["head"] > 0


@pytest.mark.parametrize("make", [gates.head_only, gates.body_only])
def test_missing_head(make):
    with pytest.raises(ValueError, match="head is 'top', but params has only body, head"):
        make(0.1, head="top").init(jax.random.key(0), PARAMS)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_kaiming_init(sparsity):
    m = gates.binary(0.1, initial_sparsity=sparsity).init(jax.random.key(3), PARAMS)
    for name, leaf in leaves_by_name(m).items():
        bound = 0.5 if leaf.ndim == 1 else np.sqrt(6 / leaf.shape[0])  # [in, out]
        shift = bound * (1 - 2 * sparsity)
        np.testing.assert_allclose(leaf.mean(), shift, atol=1e-6, err_msg=name)
        if leaf.size > 1000:
            edges = np.array([leaf.min(), leaf.max()]) - shift
            np.testing.assert_allclose(edges, [-bound, bound], rtol=0.03, err_msg=name)
            np.testing.assert_allclose(leaf.std(), bound / np.sqrt(3), rtol=0.03, err_msg=name)
            np.testing.assert_allclose(np.mean(leaf < 0), sparsity, atol=0.02, err_msg=name)


def test_kaiming_fan_in_of_a_convolution():
    kernel = {"kernel": jnp.ones((3, 3, 16, 64))}
    m = gates.binary(0.1).init(jax.random.key(0), kernel)["kernel"]
    np.testing.assert_allclose(jnp.abs(m).max(), np.sqrt(6 / (9 * 16)), rtol=0.02)


def test_leaves_and_keys_draw_apart():
    params = {"a": jnp.ones((30, 30)), "b": jnp.ones((30, 30))}
    init = gates.binary(0.1).init
    m, other = init(jax.random.key(0), params), init(jax.random.key(1), params)
    values = np.stack([m["a"], m["b"], other["a"]]).reshape(3, -1)
    assert np.all(np.abs(np.corrcoef(values) - np.eye(3)) < 0.2)
    np.testing.assert_array_equal(m["a"], init(jax.random.key(0), params)["a"])


@pytest.mark.parametrize("make", [gates.relu, gates.linear, gates.rectified])
def test_uniform_init(make):
    m = make((0.005, 0.1)).init(jax.random.key(0), PARAMS)["body"]["w"]
    np.testing.assert_allclose([m.min(), m.max(), m.mean()], [0.005, 0.1, 0.0525], atol=1e-3)


def test_masks_take_the_dtype_of_the_parameters():
    params = {"conv": jnp.ones((3, 3, 1, 2), jnp.bfloat16), "b": jnp.ones(7, jnp.bfloat16)}
    for gate in (gates.binary(0.1), gates.relu(), gates.constant(0.1), gates.generated(0.1)):
        m = gate.init(jax.random.key(0), params)
        sizes = gate.apply(m, jax.random.key(1))
        assert {x.dtype for x in jax.tree.leaves(sizes)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("gate", [gates.binary(0.1), gates.constant(0.1), gates.generated(0.1)])
def test_integer_params_are_refused(gate):
    with pytest.raises(TypeError, match=r"params\[n\] must be floating, got int32"):
        gate.init(jax.random.key(0), {"n": jnp.array([1])})


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"initial_sparsity must lie in \[0, 1\], got 1.5"):
        gates.binary(0.1, initial_sparsity=1.5)
    with pytest.raises(ValueError, match=r"init must be a number.*got 'xavier'"):
        gates.binary(0.1, init="xavier")


# sparse-MAML+

CONVS = {"conv": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4), "head": jnp.ones((6, 5))}
GENERATED = gates.generated(0.1)


def random_mask():
    m = GENERATED.init(jax.random.key(0), CONVS)
    mu, log_sigma = jax.random.normal(jax.random.key(1), (2, 1600))
    return m._replace(mu=0.1 * mu, sigma=jnp.exp(0.1 * log_sigma))


def scores(m, key):
    z = np.asarray(jax.random.normal(key, (1600,)), np.float64)
    weight = np.asarray(m.maps["conv"].weight, np.float64).reshape(1600, -1)
    out = (z * np.asarray(m.sigma) + np.asarray(m.mu)) @ weight
    return z, out.reshape(3, 3, 2, 4) + np.asarray(m.maps["conv"].bias)


def test_generated_is_numpys_linear_map():
    m = random_mask()
    for seed in range(3):
        _, score = scores(m, jax.random.key(seed))
        sizes = GENERATED.apply(m, jax.random.key(seed))
        np.testing.assert_array_equal(sizes["conv"], np.float32(0.1) * (score >= 0))
    for name in ("bias", "head"):
        np.testing.assert_array_equal(sizes[name], np.float32(0.1) * (m.maps[name] >= 0))


def test_generated_draws_afresh_with_each_key():
    m = GENERATED.init(jax.random.key(0), CONVS)
    first, second = (GENERATED.apply(m, jax.random.key(seed)) for seed in range(2))
    assert 0.2 < np.mean(first["conv"] != second["conv"]) < 0.8
    np.testing.assert_array_equal(first["head"], second["head"])
    again = GENERATED.apply(m, jax.random.key(0))
    np.testing.assert_array_equal(first["conv"], again["conv"])
    assert GENERATED.stochastic
    with pytest.raises(ValueError, match="key is None"):
        GENERATED.apply(m, None)


def test_generated_initialisation():
    m = GENERATED.init(jax.random.key(0), CONVS)
    np.testing.assert_array_equal(m.mu, np.zeros(1600))
    np.testing.assert_array_equal(m.sigma, np.ones(1600))
    weight, bias = m.maps["conv"]
    assert weight.shape == (1600, 3, 3, 2, 4) and bias.shape == (3, 3, 2, 4)
    for values in (weight, bias):  # a PyTorch linear layer: uniform within 1 / sqrt(E)
        np.testing.assert_allclose(
            [values.min(), values.max()], [-1 / 40, 1 / 40], rtol=0.1 if values is bias else 1e-3
        )
    np.testing.assert_allclose(m.maps["head"].mean(), 0.0, atol=1e-7)


def test_generated_gradients():
    """Straight-through, then the linear map's own derivative, in NumPy."""
    m, key = random_mask(), jax.random.key(5)
    weights = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), CONVS)

    def total(m):
        sizes = GENERATED.apply(m, key)
        return sum(jnp.sum(weights[name] * sizes[name]) for name in sizes)

    d_m = jax.grad(total)(m)
    z, _ = scores(m, key)
    d_score = 0.1 * np.asarray(weights["conv"], np.float64)
    code = z * np.asarray(m.sigma) + np.asarray(m.mu)
    d_code = np.asarray(m.maps["conv"].weight, np.float64).reshape(1600, -1) @ d_score.ravel()
    want = gates.GeneratedMask(
        d_code,
        d_code * z,
        {
            "conv": gates.LinearMap(np.multiply.outer(code, d_score), d_score),
            "bias": 0.1 * weights["bias"],
            "head": 0.1 * weights["head"],
        },
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), d_m, want)


# sparsity


def test_sparsity_counts_zeros():
    sizes = {"a": jnp.array([0.0, -0.0, 1e-9, -1.0]), "b": [jnp.zeros((2, 2)), jnp.array(0.3)]}
    got = gates.sparsity(sizes)
    want = {"total": 6 / 9, "a": 0.5, "b/0": 1.0, "b/1": 0.0}
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6)


def test_sparsity_of_a_bare_array_and_of_nothing():
    assert gates.sparsity(jnp.array([0.0, 1.0]))["."] == 0.5
    with pytest.raises(ValueError, match="step_sizes has no leaves"):
        gates.sparsity({})
