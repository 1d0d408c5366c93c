"""The precision of every matrix product: in the jaxpr of each step and of its gradient."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.lax import Precision

import jaxsparse
from jaxsparse import gates, nn
from jaxsparse.continual.bgd import bgd, bgd_step, expected_gradient, gaussian
from jaxsparse.continual.er import er_step, init_online_state
from jaxsparse.continual.gem import agem_step, gem_step
from jaxsparse.continual.mer import mer_step
from jaxsparse.continual.online import (
    FrozenState,
    frozen_maml_step,
    init_metabgd_state,
    metabgd_step,
)
from jaxsparse.nn.blocks import conv_norm_pool
from jaxsparse.nn.ops import conv

SHAPE, WAYS, ROWS = (16, 16, 1), 3, 2
SGD, KEY = optax.sgd(0.1), jax.random.key(0)
MODELS = {
    "conv4": nn.conv4(WAYS, 2, SHAPE, blocks="xla"),  # compiled blocks are always float32
    "cnn": nn.strided_cnn(WAYS, 2, 2, (4,), SHAPE),
    "mlp": nn.mlp(WAYS, (4,), SHAPE),
    "plain": None,
}


def rows(*shape):
    return jnp.ones((*shape, *SHAPE)), jnp.zeros(shape, jnp.int32)


def plain_loss(params, batch):
    """A user's loss, which sets no precision."""
    images, labels = batch
    hidden = jnp.tanh(images.reshape(len(labels), -1) @ params["body"])
    logits = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
    return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])


def ones(model):
    if model is None:
        head = {"kernel": jnp.ones((4, WAYS)), "bias": jnp.ones(WAYS)}
        return {"body": jnp.ones((256, 4)), "head": head}
    return jax.tree.map(lambda x: jnp.ones(x.shape), jax.eval_shape(model.init, KEY))


def kernel_of(params):
    return jnp.broadcast_to(params["head"]["bias"], (3, 3, 3, WAYS))


def block(loss_fn, params, form):
    images, vector = jnp.ones((2, 6, 6, 3)), jnp.ones(WAYS)
    return lambda p: conv_norm_pool(
        images * p["body"][0, 0], kernel_of(p), vector, vector, form=form
    )


def first_block(loss_fn, params):
    """With few input channels."""
    images, vector = jnp.ones((2, 6, 6, 1)), jnp.ones(9)

    def out(p):
        kernel = jnp.broadcast_to(p["body"].ravel()[:9], (3, 3, 1, 9))
        return conv_norm_pool(images * p["body"][0, 0], kernel, vector, vector, form="direct")

    return out


def convolution(loss_fn, params, form):
    return lambda p: conv(jnp.ones((2, 6, 6, 3)), kernel_of(p), form=form)


def adaptation(loss_fn, params, **options):
    return lambda p: jaxsparse.adapt(loss_fn, p, params, rows(ROWS), 2, **options)


def few_shot(loss_fn, params):
    gate, tasks = gates.binary(0.1, init=0.5), (rows(2, ROWS), rows(2, ROWS))
    state = jaxsparse.init_state(params, gate, SGD, SGD, KEY)
    step = functools.partial(
        jaxsparse.sparse_maml_step, loss_fn=loss_fn, gate=gate, inner_steps=2,
        theta_optimizer=SGD, mask_optimizer=SGD,
    )  # fmt: skip
    return lambda p: step(state._replace(params=p), tasks)


def evaluation(loss_fn, params):
    tasks = rows(2, ROWS), rows(2, ROWS)
    return lambda p: jaxsparse.evaluate(p, params, tasks, loss_fn=loss_fn, inner_steps=2)


def glance(loss_fn, params, **options):
    gate = gates.binary(0.1, init=0.5)
    state = jaxsparse.init_lamaml_state(params, gate, KEY, mask_optimizer=SGD)
    step = functools.partial(
        jaxsparse.lamaml_step, loss_fn=loss_fn, gate=gate, mask_optimizer=SGD, **options
    )
    return lambda p: step(state._replace(params=p), rows(ROWS), rows(ROWS), KEY)


def timestep(loss_fn, params):
    gate, batch = gates.binary(0.1, init=0.5), rows(ROWS)
    state = jaxsparse.init_cmaml_state(
        params, gate, KEY, batch=batch, theta_optimizer=SGD, mask_optimizer=SGD, capacity=2
    )
    step = functools.partial(
        jaxsparse.cmaml_step, loss_fn=loss_fn, gate=gate, inner_steps=2, theta_optimizer=SGD,
        mask_optimizer=SGD, detection_threshold=1.0, restart_now=True,
    )  # fmt: skip
    return lambda p: step(state._replace(params=p), batch)


def replay(loss_fn, params, **options):
    state = init_online_state(params, SGD)
    return lambda p: er_step(
        state._replace(params=p), rows(ROWS), rows(ROWS), loss_fn=loss_fn, optimizer=SGD, **options
    )


def mer(loss_fn, params):
    state = init_online_state(params)
    return lambda p: mer_step(
        state._replace(params=p), rows(1), rows(2, ROWS), loss_fn=loss_fn, learning_rate=0.1,
        within_batch_rate=0.1, across_batch_rate=1.0, clip_norm=1.0,
    )  # fmt: skip


def gem(loss_fn, params):
    state, options = init_online_state(params, SGD), {"loss_fn": loss_fn, "optimizer": SGD}
    return lambda p: gem_step(state._replace(params=p), rows(ROWS), rows(2, ROWS), 1, **options)


def agem(loss_fn, params):
    state, options = init_online_state(params, SGD), {"loss_fn": loss_fn, "optimizer": SGD}
    return lambda p: agem_step(state._replace(params=p), rows(ROWS), rows(ROWS), **options)


def bayes(loss_fn, params):
    state = init_online_state(gaussian(params), bgd())
    options = {"loss_fn": loss_fn, "optimizer": bgd(), "samples": 2}
    return lambda p: bgd_step(state._replace(params=gaussian(p)), rows(ROWS), KEY, **options)


def bayes_gradient(loss_fn, params):
    return lambda p: expected_gradient(loss_fn, gaussian(p), rows(ROWS), KEY, 2)


def frozen(loss_fn, params):
    options = {"loss_fn": loss_fn, "step_sizes": params, "inner_steps": 2}
    return lambda p: frozen_maml_step(FrozenState(p, p), rows(ROWS), **options)


def meta_bayes(loss_fn, params):
    state = init_metabgd_state(gaussian(params), bgd())
    options = {"loss_fn": loss_fn, "optimizer": bgd(), "samples": 2, "inner_steps": 2}
    return lambda p: metabgd_step(
        state._replace(fast_params=p), rows(ROWS), KEY, step_sizes=params, **options
    )


def generated(loss_fn, params):
    gate = gates.generated(0.1, embedding=4)
    own = {"conv": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)}
    mask = gate.init(KEY, own)
    return lambda p: gate.apply(mask._replace(mu=mask.mu + jnp.sum(p["head"]["bias"])), KEY)


second_order = functools.partial(adaptation, second_order=True)
weights = functools.partial(replay, replay_weights=jnp.ones(ROWS))
CASES = {
    "loss-conv4": (lambda loss_fn, params: lambda p: loss_fn(p, rows(ROWS)), "conv4"),
    **{
        f"block-{form}": (functools.partial(block, form=form), "plain")
        for form in ("direct", "gram", "winograd", "patches")
    },
    "first-block-direct": (first_block, "plain"),
    "convolution-winograd": (functools.partial(convolution, form="winograd"), "plain"),
    "convolution-patches": (functools.partial(convolution, form="patches"), "plain"),
    "adapt-conv4": (adaptation, "conv4"),
    "adapt-second-order-conv4": (second_order, "conv4"),
    "adapt-second-order-cnn": (second_order, "cnn"),
    "sparse_maml_step": (few_shot, "plain"),
    "evaluate": (evaluation, "plain"),
    "lamaml_step-last": (functools.partial(glance, meta_iterates="last"), "plain"),
    "lamaml_step-factors": (glance, "mlp"),
    "lamaml_step-after": (functools.partial(glance, gradient_sum="after"), "plain"),
    "lamaml_step-second-order": (functools.partial(glance, second_order=True), "plain"),
    "cmaml_step": (timestep, "plain"),
    "er_step": (replay, "plain"),
    "er_step-weights": (weights, "plain"),
    "mer_step": (mer, "plain"),
    "mer_step-factors": (mer, "mlp"),
    "gem_step": (gem, "plain"),
    "gem_step-factors": (gem, "mlp"),
    "agem_step": (agem, "plain"),
    "bgd_step": (bayes, "plain"),
    "expected_gradient": (bayes_gradient, "mlp"),
    "frozen_maml_step": (frozen, "plain"),
    "metabgd_step": (meta_bayes, "plain"),
    "generated": (generated, "mlp"),
}
# Loops of traced length have no reverse-mode gradient, and neither has the quadratic program.
WITHOUT_GRADIENT = {"cmaml_step", "gem_step", "gem_step-factors"}
# GEM's and MER's own products of gradients are exact whatever the caller sets.
EXACT = {"gem_step", "gem_step-factors", "mer_step-factors"}


PRODUCTS = (
    "dot_general", "conv_general_dilated", "grouped_convolution", "patch_pool", "patch_pick"
)  # fmt: skip


def precisions(function, params):
    """The precisions of all products in the jaxpr, and whether it has XLA convolutions."""
    found, left = [], [jax.make_jaxpr(function)(params).jaxpr]
    while left:
        for equation in left.pop().eqns:
            if equation.primitive.name in PRODUCTS:
                precision = equation.params["precision"]
                if isinstance(precision, str):
                    precision = Precision(precision)
                found.append(precision if isinstance(precision, tuple) else (precision,) * 2)
            left += inner_jaxprs(list(equation.params.values()))
    return found


def inner_jaxprs(value):
    """All jaxprs in an equation's parameters, at any depth."""
    if isinstance(value, tuple | list):
        return [jaxpr for x in value for jaxpr in inner_jaxprs(x)]
    if hasattr(value, "eqns"):
        return [value]
    return inner_jaxprs(value.jaxpr) if hasattr(value, "jaxpr") else []


def total(function):
    """The sum of all differentiable outputs of `function`."""

    def summed(params):
        leaves = jax.tree.leaves(function(params))
        return sum(jnp.sum(x) for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))

    return summed


@pytest.mark.parametrize("case", CASES)
def test_every_product_of_a_step_and_of_its_gradient_is_float32(case):
    make, network = CASES[case]
    model = MODELS[network]
    params = ones(model)
    loss_fn = plain_loss if model is None else jaxsparse.cross_entropy(model)
    step = make(loss_fn, params)
    functions = [step] if case in WITHOUT_GRADIENT else [step, jax.grad(total(step))]
    for function in functions:
        found = precisions(function, params)
        assert found
        assert set(found) == {(Precision.HIGHEST, Precision.HIGHEST)}
        with jax.default_matmul_precision("tensorfloat32"):
            asked = precisions(function, params)
        exact = asked.count((Precision.HIGHEST, Precision.HIGHEST))
        assert bool(exact) == (case in EXACT)
        assert len(asked) == len(found) > exact
