"""The gates against values by hand, NumPy, and statistics of their initialisation."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import gates
from jaxsparse.checks import leaves_by_name

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
    "shared": (gates.per_tensor(0.1), [-1, 0, 0, 0.5], [1, 1, 1, 1]),
    "constant": (gates.constant(0.1), [-1, 0, 0, 0.5], [0, 0, 0, 0]),
    "head only": (gates.head_only(0.1), [-1, 0, 0, 0.5], [0, 0, 0, 0]),
    "body only": (gates.all_but_head(0.1), [-1, 0, 0, 0.5], [0, 0, 0, 0]),
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
        (gates.all_but_head(0.3), 0.3, 0.0),
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
    m = gates.per_tensor(0.3).init(jax.random.key(0), PARAMS)
    assert jax.tree.map(jnp.shape, m) == jax.tree.map(lambda x: (), PARAMS)
    np.testing.assert_allclose(jax.tree.leaves(m), [0.3] * 4, rtol=1e-6)
    drawn = jax.tree.leaves(gates.per_tensor((-0.1, 0.1)).init(jax.random.key(0), PARAMS))
    assert len({float(x) for x in drawn}) == 4 and np.abs(drawn).max() < 0.1
    # d loss / d rate of a tensor is the sum over its entries.
    params, gradient = {"w": jnp.arange(3.0)}, jnp.array([1.0, -2.0, 4.0])
    d_m = jax.grad(lambda m: jnp.sum((params["w"] - m["w"] * gradient) ** 2))({"w": jnp.array(0.5)})
    np.testing.assert_allclose(d_m["w"], -2 * gradient @ (params["w"] - 0.5 * gradient))
    with pytest.raises(TypeError, match=r"params"):
        gates.per_tensor(0.1).init(jax.random.key(0), {"w": jnp.ones(2, int)})


def test_head_is_a_whole_path_component():
    m = gates.head_only(0.3).init(jax.random.key(0), {"head": jnp.ones(1), "header": jnp.ones(1)})
    assert m["header"] == 0 and m["head"] > 0


@pytest.mark.parametrize("make", [gates.head_only, gates.all_but_head])
def test_missing_head(make):
    with pytest.raises(ValueError, match=r"head is 'top', but params has only body, head"):
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


def test_leaves_and_keys_draw_independently():
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


def test_generated_matches_numpys_linear_map():
    m = random_mask()
    for seed in range(3):
        _, score = scores(m, jax.random.key(seed))
        sizes = GENERATED.apply(m, jax.random.key(seed))
        np.testing.assert_array_equal(sizes["conv"], np.float32(0.1) * (score >= 0))
    for name in ("bias", "head"):
        np.testing.assert_array_equal(sizes[name], np.float32(0.1) * (m.maps[name] >= 0))


def test_generated_draws_again_with_each_key():
    m = GENERATED.init(jax.random.key(0), CONVS)
    first, second = (GENERATED.apply(m, jax.random.key(seed)) for seed in range(2))
    assert 0.2 < np.mean(first["conv"] != second["conv"]) < 0.8
    np.testing.assert_array_equal(first["head"], second["head"])
    again = GENERATED.apply(m, jax.random.key(0))
    np.testing.assert_array_equal(first["conv"], again["conv"])
    assert GENERATED.stochastic
    with pytest.raises(ValueError, match=r"key is None"):
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
    with pytest.raises(ValueError, match=r"step_sizes has no leaves"):
        gates.sparsity({})


# the ends of the initial sparsity


SHAPES = [(), (1,), (2,), (7,), (64,), (3, 4), (3, 3, 2, 4)]


@pytest.mark.parametrize(
    "shape, dtype",
    [
        *((shape, "float32") for shape in SHAPES),
        *(
            pytest.param(shape, dtype, marks=() if shape in ((7,), (64,)) else pytest.mark.slow)
            for dtype in ("bfloat16", "float16")
            for shape in SHAPES
        ),
    ],
)
def test_initial_sparsity_of_none_and_of_all_is_exact(shape, dtype):
    keys = jax.random.split(jax.random.key(0), 300)
    for share in (0.0, 1.0):
        gate = gates.binary(0.1, initial_sparsity=share)
        m = jax.vmap(lambda key, g=gate: g.init(key, jnp.ones(shape, dtype)))(keys)
        assert np.mean(np.asarray(gate.apply(m, None)) == 0) == share


def test_a_single_value_is_open_half_of_the_time():
    keys = jax.random.split(jax.random.key(0), 4000)
    for share in (0.5, 0.2):
        gate = gates.binary(0.1, initial_sparsity=share)
        m = jax.vmap(lambda key, g=gate: g.init(key, {"b": jnp.ones(1), "s": jnp.ones(())}))(keys)
        for leaf in m.values():
            assert float(jnp.mean(leaf < 0)) == pytest.approx(share, abs=0.03)


def test_the_default_start_is_the_centred_draw():
    """By hand: uniform within the bound, minus its mean."""
    m = gates.binary(0.1).init(jax.random.key(3), jnp.ones(6))
    key = jax.random.split(jax.random.key(3), 1)[0]
    values = jax.random.uniform(key, (6,), jnp.float32, -0.5, 0.5)
    np.testing.assert_array_equal(m, values - values.mean())


# heads by their keys


class Layer:
    """A node whose children have attribute names, like Equinox's modules."""

    def __init__(self, layers):
        self.layers = layers


jax.tree_util.register_pytree_with_keys(
    Layer,
    lambda x: (((jax.tree_util.GetAttrKey("layers"), x.layers),), None),
    lambda _, children: Layer(*children),
)

PAIR = {"w": jnp.ones(2), "b": jnp.ones(3)}
HEADS = {
    "haiku": ({"mlp/~/linear_0": PAIR, "mlp/~/linear_1": PAIR}, "mlp/~/linear_1"),
    "linen": ({"params": {"Dense_0": PAIR, "head": PAIR}}, "params/head"),
    "equinox": (Layer([PAIR, PAIR]), "layers/1"),
    "a list": ([PAIR, PAIR], "1"),
}


@pytest.mark.parametrize("params, head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("make", [gates.head_only, gates.all_but_head])
def test_heads_of_other_libraries(make, params, head):
    m = make(0.5, head=head).init(jax.random.key(0), params)
    rates = [float(x[0]) for x in jax.tree.leaves(m)]
    assert rates == ([0, 0, 0.5, 0.5] if make is gates.head_only else [0.5, 0.5, 0, 0])


@pytest.mark.parametrize(
    "params, head, message",
    [
        (HEADS["haiku"][0], "mlp", "head is 'mlp', but params has only mlp/~/linear_0, mlp/~/lin"),
        (HEADS["linen"][0], "head", "params has only params/Dense_0, params/head"),
        (HEADS["linen"][0], "params", "head is 'params', but that is all of params"),
        (HEADS["equinox"][0], "layers", "that is all of params"),
        ({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1), "c": jnp.ones(1)}, "a/b", "two places"),
        (jnp.ones(2), "head", "head is 'head', but params has only"),
    ],
)
@pytest.mark.parametrize("make", [gates.head_only, gates.all_but_head])
def test_a_head_of_no_or_all_parameters(make, params, head, message):
    with pytest.raises(ValueError, match=message):
        make(0.1, head=head).init(jax.random.key(0), params)


# what gates refuse

NAN, INF = float("nan"), float("inf")
INITS = [gates.relu, gates.rectified, gates.linear, gates.per_tensor]
RATES = [gates.binary, gates.constant, gates.head_only, gates.all_but_head, gates.generated]


@pytest.mark.parametrize("make", [*INITS, lambda init: gates.binary(0.1, init=init)])
@pytest.mark.parametrize(
    "init", [NAN, INF, (0.2, 0.1), (0.1, 0.1), (NAN, 1.0), (0.0, INF), (0.1,), None, [0.1, 0.2]]
)
def test_bad_inits(make, init):
    with pytest.raises(ValueError, match=r"init must be"):
        make(init)


@pytest.mark.parametrize("make", INITS)
def test_rates_are_not_drawn_around_zero(make):
    with pytest.raises(ValueError, match=r"init must be a number or .*got 'kaiming'"):
        make("kaiming")


@pytest.mark.parametrize("make", RATES)
def test_bad_rates(make):
    for rate in (NAN, INF, 10**400, -0.1, np.float32(-1), jnp.nan, jnp.array(-0.5), jnp.ones(2)):
        with pytest.raises(ValueError, match=r"inner_lr must be a finite number, 0 or more"):
            make(rate)
    for rate in ("0.1", None, 1j):
        with pytest.raises(TypeError, match=r"inner_lr must be a finite number, 0 or more"):
            make(rate)
    with pytest.raises(ValueError, match=r"slope must be a finite number, got nan"):
        gates.binary(0.1, slope=NAN)
    with pytest.raises(ValueError, match=r"embedding must be 1 or more"):
        gates.generated(0.1, embedding=0)


def test_traced_rates_and_inits_are_taken():
    def sizes(rate, low):
        own = gates.binary(rate, init=rate), gates.relu((low, rate)), gates.constant(rate)
        return [g.apply(g.init(jax.random.key(0), jnp.ones(3)), None) for g in own]

    for leaf in jax.vmap(sizes)(jnp.array([0.1, 0.2]), jnp.array([0.05, 0.1])):
        assert leaf.shape == (2, 3) and np.isfinite(leaf).all()


@pytest.mark.parametrize(
    "params, error, message",
    [
        ({"w": jnp.ones((3, 0))}, ValueError, r"params\[w\] has shape \(3, 0\)"),
        ({"f": jax.nn.relu, "w": jnp.ones(2)}, TypeError, r"params\[f\] must be a floating array"),
        ({"name": "float32"}, TypeError, r"params\[name\] must be a floating array, got 'float32'"),
        ({"t": jnp.float32}, TypeError, r"params\[t\] must be a floating array"),
        ({}, ValueError, "params has no leaves"),
        ({"w": np.array(["a"])}, TypeError, r"params\[w\] must be floating, got <U1"),
    ],
)
@pytest.mark.parametrize(
    "gate", [gates.binary(0.1), gates.per_tensor(0.1), gates.all_but_head(0.1)]
)
def test_leaves_that_are_no_parameters(gate, params, error, message):
    with pytest.raises(error, match=message):
        gate.init(jax.random.key(0), params)


# sparsity of trees with awkward names, and of shared rates


def test_sparsity_of_awkward_names():
    zeros, ones = jnp.zeros(2), jnp.ones(2)
    got = gates.sparsity({"total": zeros, "w": ones})
    assert {k: float(v) for k, v in got.items()} == {"total": 0.5, "['total']": 1.0, "w": 0.0}
    got = gates.sparsity({"a": {"b": zeros}, "a/b": ones})
    want = {"total": 0.5, "['a']['b']": 1.0, "['a/b']": 0.0}
    assert {k: float(v) for k, v in got.items()} == want


def test_sparsity_distinguishes_leaves_whose_keys_look_like_paths():
    zeros, ones = jnp.zeros(1), jnp.ones(1)
    got = gates.sparsity({"total": zeros, "['total']": jnp.ones(3)})
    want = {"total": 0.25, "['total']": 1.0, "[\"['total']\"]": 0.0}
    assert {k: float(v) for k, v in got.items()} == want
    got = gates.sparsity({"a": {"b": zeros}, "a/b": ones, "['a/b']": jnp.ones(2)})
    want = {"total": 0.25, "['a']['b']": 1.0, "['a/b']": 0.0, "[\"['a/b']\"]": 0.0}
    assert {k: float(v) for k, v in got.items()} == want
    Whole = collections.namedtuple("Whole", "total w")
    assert list(gates.sparsity(Whole(zeros, ones))) == ["total", ".total", "w"]


def test_a_shared_rate_counts_for_all_that_share_it():
    params = {"b": jnp.ones(2), "w": jnp.ones((3, 2))}
    rates = {"b": jnp.float32(0.1), "w": jnp.float32(0.0)}
    got = gates.sparsity(rates, params)
    assert {k: float(v) for k, v in got.items()} == {"total": 0.75, "b": 0.0, "w": 1.0}
    assert float(gates.sparsity(rates)["total"]) == 0.5
    mixed = {"b": jnp.array([0.0, 0.1]), "w": jnp.float32(0.0)}
    assert float(gates.sparsity(mixed, params)["total"]) == pytest.approx(7 / 8)
    with pytest.raises(ValueError, match=r"step_sizes\[b\] has shape \(3,\), params has \(2,\)"):
        gates.sparsity({"b": jnp.ones(3), "w": jnp.float32(0)}, params)
    with pytest.raises(ValueError, match=r"params must have the tree of step_sizes"):
        gates.sparsity(rates, {"b": jnp.ones(2)})
