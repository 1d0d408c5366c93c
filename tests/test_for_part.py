"""Parameters that the inner loop does not adapt: they have no mask, but theta still learns them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse import gates, nn, training
from jaxsparse.checks import leaves_by_name
from jaxsparse.training.fewshot.config import Method

reference = pytest.importorskip("torch_reference")

ALPHA, STEPS = 0.1, 3
MODEL = nn.conv4(3, 4, (16, 16, 1), use_bias=False, blocks="xla")
SHAPES = {
    "conv1": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
    "norm1": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "head": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)},
}


def no_norm(name):
    return not name.startswith("norm")


def task(key):
    keys = jax.random.split(key, 2)
    support, query = (jax.random.normal(k, (2, 6, 16, 16, 1)) for k in keys)
    labels = jnp.tile(jnp.repeat(jnp.arange(3), 2), (2, 1))
    return (support, labels), (query, labels)


def test_others_have_neither_mask_nor_step_size():
    asked = []
    gate = gates.for_part(gates.binary(0.25, init=0.5), lambda n: asked.append(n) or no_norm(n))
    m = gate.init(jax.random.key(0), SHAPES)
    assert sorted(asked) == sorted(f"{a}/{b}" for a, leaves in SHAPES.items() for b in leaves)
    for tree, value in ((m, 0.5), (gate.apply(m, None), 0.25)):
        assert tree["norm1"] == {"scale": None, "bias": None}
        for layer in ("conv1", "head"):
            for name, leaf in SHAPES[layer].items():
                np.testing.assert_array_equal(tree[layer][name], np.full(leaf.shape, value, "f4"))


def test_sparsity_counts_only_the_parameters_with_a_step_size():
    sizes = {"norm": None, "a": jnp.array([0.0, 0.1, 0.1]), "b": [jnp.float32(0.0), None]}
    assert {k: float(v) for k, v in gates.sparsity(sizes).items()} == {
        "total": 0.5,
        "a": pytest.approx(1 / 3),
        "b/0": 1.0,
    }
    params = {"norm": jnp.ones(100), "a": jnp.ones(3), "b": [jnp.ones(5), jnp.ones(7)]}
    # By hand: one of 3 in a, and all 5 that share the step size b/0.
    assert float(gates.sparsity(sizes, params)["total"]) == pytest.approx(6 / 8)
    with pytest.raises(ValueError, match="params must have the tree of step_sizes"):
        gates.sparsity(sizes, {"norm": jnp.ones(100), "a": jnp.ones(3)})


def test_nothing_to_adapt_is_refused():
    gate = gates.for_part(gates.constant(0.1), lambda name: name == "top")
    with pytest.raises(ValueError, match=r"inner_params selects none of .*norm1/scale"):
        gate.init(jax.random.key(0), SHAPES)


@pytest.mark.parametrize(
    ("gate", "conv", "head"),
    [(gates.head_only(0.3), 0.0, 0.3), (gates.all_but_head(0.3), 0.3, 0.0)],
)
def test_anil_and_boil_without_norms(gate, conv, head):
    part = gates.for_part(gate, no_norm)
    sizes = part.apply(part.init(jax.random.key(0), SHAPES), None)
    assert sizes["norm1"] == {"scale": None, "bias": None}
    for layer, value in (("conv1", conv), ("head", head)):
        for name, leaf in SHAPES[layer].items():
            np.testing.assert_allclose(sizes[layer][name], np.full(leaf.shape, value), rtol=1e-6)
    # 20 parameters of the convolution, 25 of the head.
    frozen = (20 if conv == 0 else 25) / 45
    assert float(gates.sparsity(sizes, SHAPES)["total"]) == pytest.approx(frozen)


def test_phi_keeps_the_norms_of_theta():
    gate = gates.for_part(gates.constant(ALPHA), no_norm)
    params = MODEL.init(jax.random.key(0))
    sizes = gate.apply(gate.init(jax.random.key(1), params), None)
    support = jax.tree.map(lambda x: x[0], task(jax.random.key(2))[0])
    loss_fn = jaxsparse.cross_entropy(MODEL)
    phi, _ = jaxsparse.adapt(loss_fn, params, sizes, support, STEPS)
    theta, phi = reference.flat(params), reference.flat(phi)
    assert theta.keys() == phi.keys()
    for name, leaf in phi.items():
        kept = np.array_equal(leaf, theta[name])
        assert kept == name.startswith("norm"), name


@pytest.mark.parametrize(
    "order", ["first_order", pytest.param("second_order", marks=pytest.mark.slow)]
)
def test_meta_step_matches_pytorch_with_zero_step_sizes(order):
    gate, sgd = gates.for_part(gates.binary(ALPHA), no_norm), optax.sgd(1.0)
    learner = jaxsparse.maml(
        jaxsparse.cross_entropy(MODEL),
        gate,
        inner_steps=STEPS,
        theta_optimizer=sgd,
        mask_optimizer=sgd,
        second_order=order == "second_order",
    )
    params = MODEL.init(jax.random.key(0))
    state, tasks = learner.init(params, jax.random.key(1)), task(jax.random.key(2))
    # In PyTorch the norms have masks below zero, so their step sizes are zero.
    mask = jax.tree.map(lambda x: jnp.full_like(x, -1.0), params)
    mask |= {name: m for name, m in state.mask.items() if no_norm(name)}
    torch_gate = reference.ElementwiseGate("binary", mask, ALPHA)

    def torch_sgd(tensors):
        return reference.torch.optim.SGD(tensors, lr=1.0)

    want = reference.MetaLearner(reference.conv4_loss, params, torch_gate, torch_sgd, torch_sgd)
    listed = reference.batch_to_torch(tasks)
    pairs = [jax.tree.map(lambda x, i=i: x[i], listed) for i in range(2)]
    loss = want.step(pairs, STEPS, getattr(reference, order))
    after, metrics = learner.step(state, tasks, None)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    got = reference.flat(after.params)
    for name, leaf in want.theta.items():
        np.testing.assert_allclose(got[name], leaf.detach(), atol=2e-4, err_msg=name)
        if name.startswith("norm"):
            assert np.abs(got[name] - reference.flat(params)[name]).max() > 1e-3, name
    got = reference.flat(after.mask)
    assert all(map(no_norm, got)) and got
    for name, leaf in got.items():
        np.testing.assert_allclose(leaf, torch_gate.mask[name].detach(), atol=2e-4, err_msg=name)


@pytest.mark.parametrize("method", Method.__args__)
def test_every_method_trains_without_adapting_the_norms(method):
    sizes = {"ways": 2, "width": 2, "embedding": 8}
    config = training.FewShotConfig(method, adapt_norm=False, blocks="xla", **sizes)
    model, _, gate, learner = training.make_learner(config, (16, 16, 1))
    key = jax.random.key(0)
    state = jax.eval_shape(learner.init, jax.eval_shape(model.init, key), key)
    names = set(leaves_by_name(state.params))
    adapted = leaves_by_name(jax.eval_shape(gate.apply, state.mask, key))
    assert set(adapted) == set(filter(no_norm, names)) < names
    batch = (
        jax.ShapeDtypeStruct((2, 4, 16, 16, 1), "float32"),
        jax.ShapeDtypeStruct((2, 4), "int32"),
    )
    after, _ = jax.eval_shape(learner.step, state, (batch, batch), None)
    assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("without", ["dense1/kernel", "dense1/bias", "head/bias"])
def test_lamaml_with_parameters_outside_the_inner_loop(without):
    """A loss that gives the parts of its first layer has the same step as one that does not."""
    model = jaxsparse.nn.mlp(ways=3, hidden=(8,), image_shape=(2, 2, 1))
    params, loss = model.init(jax.random.key(0)), jaxsparse.cross_entropy(model)
    batch = jax.random.normal(jax.random.key(1), (4, 2, 2, 1)), jnp.array([0, 1, 2, 1])
    gate, sgd = gates.for_part(gates.binary(ALPHA), lambda name: name != without), optax.sgd(0.1)
    options = {"gate": gate, "mask_optimizer": sgd}
    state = jaxsparse.init_lamaml_state(params, gate, jax.random.key(2), mask_optimizer=sgd)
    got, want = (
        jaxsparse.lamaml_step(state, batch, None, jax.random.key(3), loss_fn=f, **options)[0]
        for f in (loss, lambda params, rows: loss(params, rows))
    )
    jax.tree.map(np.testing.assert_array_equal, (got.params, got.mask), (want.params, want.mask))
    layer, leaf = without.split("/")
    np.testing.assert_array_equal(got.params[layer][leaf], params[layer][leaf])
    assert not np.array_equal(got.params["head"]["kernel"], params["head"]["kernel"])
