"""Networks of the user's own: flax.nnx, flax.linen and equinox."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxsparse
from jaxsparse import gates, nn
from jaxsparse.checks import leaf_names
from tests.problems import quick_jit

pytestmark = pytest.mark.usefixtures("quick_programs")
SHAPE, WAYS = (2, 3, 1), 3


class Linear(nnx.Module):
    """The network of `nn.mlp` without hidden layers, with dropout."""

    def __init__(self, rngs, dropout=0.9):
        self.drop = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(6, WAYS, rngs=rngs)

    def __call__(self, x, scale=1.0):
        return self.head(self.drop(scale * x.reshape(len(x), -1)))


class Normed(nnx.Module):
    """A convolution, batch norm, a list of layers, and a table that is not trained."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 2, (2, 2), rngs=rngs)
        self.norm = nnx.BatchNorm(2, epsilon=0.0, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(12, WAYS, rngs=rngs), nnx.Linear(3, WAYS, rngs=rngs)])
        self.table = nnx.BatchStat(jnp.float32(0.0))

    def __call__(self, x):
        x = self.norm(self.conv(x))
        self.table[...] += 1.0
        return self.layers[1](self.layers[0](x.reshape(len(x), -1)) + self.table[...])


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.BatchNorm(use_running_average=not train, epsilon=0.0, name="norm")(x)
        x = linen.Dropout(0.9, deterministic=not train)(x)
        return linen.Dense(WAYS, name="out")(x.reshape(len(x), -1))


class LateNorm(linen.Module):
    """A norm that leaves the choice of statistics to its call."""

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(epsilon=0.0, name="norm")(x)
        return linen.Dense(WAYS, name="out")(x.reshape(len(x), -1))


def images(seed=0, count=6, dtype=np.float32):
    draw = np.random.default_rng(seed).normal(2.0, 3.0, (count, *SHAPE))
    return jnp.asarray(draw, dtype)


def labels(count=6):
    return jnp.arange(count) % WAYS


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


def test_an_nnx_module_learns_as_the_same_network_of_ours():
    ours, own = nn.mlp(WAYS, (), SHAPE), nn.from_nnx(Linear)
    params = ours.init(jax.random.key(1))
    tasks = jax.tree.map(lambda x: jnp.stack([x, x]), ((images(), labels()), (images(1), labels())))
    gate, sgd = gates.binary(0.1, init=(-1.0, 1.0)), optax.sgd(0.1)
    ends = []
    for model in (ours, own):
        options = {"theta_optimizer": sgd, "mask_optimizer": sgd}
        loss_fn = jaxsparse.cross_entropy(model)
        learner = jaxsparse.maml(loss_fn, gate, inner_steps=2, **options)
        state, _ = learner.step(learner.init(params, jax.random.key(0)), tasks, None)
        sizes = gate.apply(state.mask, None)
        metrics = jaxsparse.evaluate(state.params, sizes, tasks, loss_fn=loss_fn, inner_steps=1)
        ends.append((state.params, state.mask, metrics["loss"], metrics["accuracy"]))
    assert not np.array_equal(ends[0][0]["head"]["kernel"], params["head"]["kernel"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *ends)


def test_an_nnx_module_on_a_stream_with_weights():
    own = nn.from_nnx(Linear)
    params, ours = own.init(jax.random.key(0)), nn.mlp(WAYS, (), SHAPE)
    batch, weights = jaxsparse.StreamBatch((images(), labels())), jnp.array([1.0, 0.0])
    batch = batch._replace(replay=(images(1, 2), labels(2)), replay_weights=weights)
    ends = [
        (learner := jaxsparse.lamaml(jaxsparse.cross_entropy(m), gates.rectified(0.1),
                                     mask_optimizer=optax.sgd(0.1))).step(
            learner.init(params, jax.random.key(0)), batch, jax.random.key(1))[0].params
        for m in (own, ours, own._replace(rowwise=True))
    ]  # fmt: skip
    for end in ends[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ends[0], end)


def test_the_parameters_of_an_nnx_module_and_what_init_gives():
    module = Normed(rngs=nnx.Rngs(3))
    of_module, of_class = nn.from_nnx(module), nn.from_nnx(Normed)
    same, again = (of_module.init(jax.random.key(seed)) for seed in (0, 1))
    assert leaf_names(same) == leaf_names(nnx.state(module, nnx.Param))
    assert "layers/0/kernel" in leaf_names(same) and len(leaf_names(same)) == 8
    jax.tree.map(np.testing.assert_array_equal, same, again)
    np.testing.assert_array_equal(same["conv"]["kernel"], module.conv.kernel[...])
    one, other = jax.vmap(of_class.init)(jax.random.split(jax.random.key(0)))["conv"]["kernel"]
    assert one.shape == (2, 2, 1, 2) and not np.array_equal(one, other)
    wanted = nnx.to_pure_dict(nnx.state(Normed(rngs=nnx.Rngs(jax.random.key(5))), nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, of_class.init(jax.random.key(5)), wanted)
    same["conv"]["kernel"].delete()  # it is a copy
    assert np.isfinite(np.asarray(module.conv.kernel[...])).all()


def test_batch_norm_uses_the_batch_and_stores_nothing():
    module = Normed(rngs=nnx.Rngs(0))
    model = nn.from_nnx(module)
    params = model.init(jax.random.key(0))
    apply = quick_jit(model.apply)
    first = apply(params, images())
    np.testing.assert_array_equal(first, apply(params, images()))
    convolved = np.asarray(module.conv(images()), np.float64)
    centred = convolved - convolved.mean((0, 1, 2))
    hidden = flat(centred / centred.std((0, 1, 2))) @ flat(params["layers"][0]["kernel"]) + 1.0
    np.testing.assert_allclose(first, hidden @ flat(params["layers"][1]["kernel"]), rtol=1e-4)
    assert float(module.table[...]) == 0.0 and not module.norm.mean[...].any()
    assert model.rowwise is False

    stored = nn.from_nnx(module, use_running_average=True)
    hidden = flat(convolved) @ flat(params["layers"][0]["kernel"]) + 1.0
    got = quick_jit(stored.apply)(params, images())
    np.testing.assert_allclose(got, hidden @ flat(params["layers"][1]["kernel"]), rtol=1e-4)
    assert stored.rowwise is None


def test_dropout_is_off_and_options_reach_the_call():
    module = Linear(nnx.Rngs(0))
    module.train()
    params = nn.from_nnx(module).init(jax.random.key(0))
    kernel, x = flat(params["head"]["kernel"]), images()
    np.testing.assert_allclose(nn.from_nnx(module).apply(params, x), flat(x) @ kernel, rtol=1e-5)
    halved = nn.from_nnx(functools.partial(Linear, dropout=0.5), scale=0.5)
    np.testing.assert_allclose(halved.apply(params, x), 0.5 * flat(x) @ kernel, rtol=1e-5)


@pytest.mark.parametrize("gate", [
    gates.head_only(0.1, head="layers/1"), gates.all_but_head(0.1, head="layers/1"),
    gates.generated(0.1, embedding=2), gates.for_part(gates.binary(0.1), lambda n: "norm" not in n),
], ids=["anil", "boil", "plus", "for part"])  # fmt: skip
@pytest.mark.parametrize("kind", ["dict", "state"])
def test_gates_of_nnx_parameters(gate, kind):
    module = Normed(rngs=nnx.Rngs(0))
    params = nnx.state(module, nnx.Param)
    params = params if kind == "state" else nn.from_nnx(module).init(jax.random.key(0))
    sizes = gate.apply(gate.init(jax.random.key(0), params), jax.random.key(1))
    frozen = jaxsparse.sparsity(sizes, params)
    if gate.stochastic:
        assert 0 < frozen["conv/kernel"] < 1
    elif "norm/scale" not in frozen:
        assert len(frozen) == 1 + 6
    else:
        assert frozen["layers/1/kernel"] != frozen["layers/0/kernel"] == frozen["conv/bias"]


@pytest.mark.parametrize("net, options", [(LinenNet(), {"train": True}), (LateNorm(), {})])
def test_a_linen_module(net, options):
    model = nn.from_linen(net, SHAPE, **options)
    params = model.init(jax.random.key(0))
    assert leaf_names(params) == ["norm/bias", "norm/scale", "out/bias", "out/kernel"]
    x = images()
    centred = flat(x.reshape(-1, 1)) - flat(x).mean()
    wanted = (centred / centred.std()).reshape(len(x), -1) @ flat(params["out"]["kernel"])
    np.testing.assert_allclose(model.apply(params, x), wanted, rtol=1e-4, atol=1e-5)
    loss_fn, sizes = jaxsparse.cross_entropy(model), jax.tree.map(lambda _: 0.1, params)
    _, inner = jaxsparse.adapt(loss_fn, params, sizes, (x, labels()), 3)
    assert inner["loss"][2] < inner["loss"][0]
    gate = gates.head_only(0.1, head="out")
    assert jaxsparse.sparsity(gate.init(jax.random.key(0), params))["norm/scale"] == 1
    assert model.rowwise is False
    other = model.init(jax.random.key(1))
    assert not np.array_equal(other["out"]["kernel"], params["out"]["kernel"])


def test_the_variables_of_a_linen_module():
    start = LinenNet().init(jax.random.key(0), images())
    stats = {"norm": {"mean": jnp.full(1, 2.0), "var": jnp.full(1, 4.0)}}
    given = {"params": start["params"], "batch_stats": stats}
    model = nn.from_linen(LinenNet(), images(), variables=given, use_running_average=True)
    params = model.init(jax.random.key(9))
    jax.tree.map(np.testing.assert_array_equal, params, start["params"])
    wanted = (flat(images()) - 2) / 2 @ flat(params["out"]["kernel"])
    np.testing.assert_allclose(model.apply(params, images()), wanted, rtol=1e-4)


def test_half_precision_parameters_and_numpy_images():
    model = nn.from_nnx(Linear)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.init(jax.random.key(0)))
    assert model.apply(half, np.asarray(images(), np.float64)).dtype == jnp.bfloat16
    bright = np.full((2, *SHAPE), 255, np.uint8)
    params = model.init(jax.random.key(0))
    wanted = np.full((2, 6), 255.0) @ flat(params["head"]["kernel"])
    np.testing.assert_allclose(model.apply(params, bright), wanted, rtol=1e-5)
    scaled = nn.normalised(model, (0.0,), (1 / 255,))
    np.testing.assert_allclose(scaled.apply(params, bright), wanted, rtol=1e-5)


class Wrong(nnx.Module):
    def __init__(self, rngs):
        self.w = nnx.Param(jnp.ones(1))

    def __call__(self, x, what="shape"):
        scaled = x * self.w[...].reshape(1, 1, 1, 1)
        return {"shape": scaled, "mean": scaled.mean((0, 1, 2)), "pair": (x, x), "ints":
                jnp.zeros((len(x), 2), int)}[what]  # fmt: skip


@pytest.mark.parametrize("what, error, match", [
    ("shape", ValueError, r"module must return logits \[n, classes\], got \[6, 2, 3, 1\] for 6"),
    ("mean", ValueError, r"got \[1\] for 6 images"),
    ("pair", TypeError, r"must return floating logits, got \(float32\[6, 2, 3, 1\], float32"),
    ("ints", TypeError, r"floating logits, got int32\[6, 2\]"),
])  # fmt: skip
def test_outputs_that_are_no_logits(what, error, match):
    model = nn.from_nnx(Wrong, what=what)
    with pytest.raises(error, match=match):
        jax.eval_shape(model.apply, model.init(jax.random.key(0)), images())


def test_arguments_that_do_not_fit():
    model = nn.from_nnx(Linear)
    params = model.init(jax.random.key(0))
    for wrong, match in (
        ({"head": params["head"], "more": 1.0}, "leaves of this network: got head/bias, .*more"),
        ({"head": {**params["head"], "bias": jnp.zeros(4)}}, r"params\[head/bias\] has shape"),
    ):
        with pytest.raises(ValueError, match=match):
            model.apply(wrong, images())
    for module in (None, 3, lambda rngs: 3, nn.mlp(5)):
        with pytest.raises(TypeError, match=r"module must be an nnx\.Module or make one from rngs"):
            nn.from_nnx(module)
    for module in (linen.Dense(5), linen.Dense):
        with pytest.raises(TypeError, match="use from_linen"):
            nn.from_nnx(module)
    with pytest.raises(ValueError, match=r"must have an nnx.Param, got Dropout without one"):
        nn.from_nnx(lambda rngs: nnx.Dropout(0.5, rngs=rngs))
    with pytest.raises(TypeError, match="images: got 'x', want an array"):
        model.apply(params, "x")
    with pytest.raises(TypeError, match=r"must be a flax\.linen\.Module, got Linear"):
        nn.from_linen(Linear(nnx.Rngs(0)), SHAPE)
    with pytest.raises(ValueError, match=r"norm 'norm' has use_running_average=True, want False"):
        nn.from_linen(LinenNet(), SHAPE)
    with pytest.raises(ValueError, match=r"example must be images .*, got float32\[3\]"):
        nn.from_linen(LateNorm(), jnp.ones(3))
    for example in ((0, 4, 1), (-1, 4, 1)):
        with pytest.raises(ValueError, match="example must be images"):
            nn.from_linen(LateNorm(), example)
    nn.from_linen(LateNorm(), tuple(map(np.int64, SHAPE)))
    with pytest.raises(ValueError, match="module must have parameters, got Dropout without any"):
        nn.from_linen(linen.Dropout(0.5, deterministic=True), SHAPE)
    for variables in ({}, {"params": {}}):
        with pytest.raises(ValueError, match="variables must have a collection 'params'"):
            nn.from_linen(LateNorm(), SHAPE, variables=variables)
    with pytest.raises(ValueError, match=r"images: got shape \(6, 4, 4, 1\), want"):
        late = nn.from_linen(LateNorm(), SHAPE)
        late.apply(late.init(jax.random.key(0)), jnp.ones((6, 4, 4, 1)))
    with pytest.raises(ValueError, match=r"module must return logits"):
        nn.from_linen(linen.Dense(2), SHAPE)


def test_equinox_modules_need_only_partition():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(6, WAYS, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def loss_fn(params, batch):
        x, y = batch
        logits = jax.vmap(eqx.combine(params, static))(x.reshape(len(x), -1))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    gate, sgd = gates.all_but_head(0.1, head="layers/1"), optax.sgd(0.1)
    learner = jaxsparse.maml(
        loss_fn, gate, inner_steps=2, theta_optimizer=sgd, mask_optimizer=sgd
    )  # fmt: skip
    batch = jax.tree.map(lambda x: x[None], (images(), labels()))
    state, metrics = learner.step(learner.init(params, jax.random.key(0)), (batch, batch), None)
    assert metrics["loss"] < metrics["inner_loss"][0]
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    trained = eqx.combine(state.params, static)
    assert trained(jnp.ones(6)).shape == (WAYS,)
