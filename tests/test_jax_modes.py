"""The public API under JAX's modes: it works, and parameters keep their dtype."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse
from jaxsparse import gates, metrics, nn
from jaxsparse.continual import bgd, buffer, er, gem, mer, online

SGD = optax.sgd(0.1)
MODEL = nn.mlp(ways=3, hidden=(4,), image_shape=(2, 2, 1))
LOSS = jaxsparse.cross_entropy(MODEL)


def square_loss(params, x):
    """The loss of a network with one tensor, in the dtype of its parameters."""
    loss = jnp.mean(jnp.square(x.astype(params["w"].dtype) - params["w"][None]))
    return loss, {"twice": 2 * loss}


GATES = {
    "binary": gates.binary(0.1),
    "constant init": gates.binary(0.1, slope=0.5, init=0.1),
    "relu": gates.relu((0.005, 0.1)),
    "rectified": gates.rectified(0.1),
    "linear": gates.linear(0.1),
    "shared": gates.per_tensor(0.1),
    "constant": gates.constant(0.1),
    "head only": gates.head_only(0.1),
    "body only": gates.all_but_head(0.1),
    "generated": gates.generated(0.1, embedding=4),
}


def params_and_rows(dtype, *axes):
    """A network's parameters, and rows of images with their labels."""
    params = jax.tree.map(lambda x: x.astype(dtype), MODEL.init(jax.random.key(0)))
    draw = np.random.default_rng(0)
    images = draw.normal(size=(*axes, 2, 2, 1)).astype(np.float32)
    return params, (jnp.asarray(images), jnp.asarray(draw.integers(3, size=axes), jnp.int32))


def gate_case(gate):
    def run(dtype):
        params = {
            "conv": jnp.ones((3, 3, 1, 2), dtype),
            "head": jnp.linspace(-1, 1, 5, dtype=dtype),
        }
        mask = gate.init(jax.random.key(0), params)
        sizes = gate.apply(mask, jax.random.key(1))
        jaxsparse.sparsity(sizes, params)
        return sizes

    return run


def adapt_case(second_order=False, steps=2):
    def run(dtype):
        params, rows = params_and_rows(dtype, 6)
        sizes = jax.tree.map(lambda x: jnp.full(x.shape, 0.1, x.dtype), params)

        def outer(params, sizes):
            phi, _ = jaxsparse.adapt(LOSS, params, sizes, rows, steps, second_order=second_order)
            return LOSS(phi, rows)[0]

        return jax.grad(outer, (0, 1))(params, sizes)

    return run


def maml_case(gate, **options):
    def run(dtype):
        params, tasks = params_and_rows(dtype, 2, 3)
        state = jaxsparse.init_state(params, gate, SGD, SGD, jax.random.key(0))
        state, _ = jaxsparse.sparse_maml_step(
            state,
            (tasks, tasks),
            loss_fn=LOSS,
            gate=gate,
            inner_steps=2,
            theta_optimizer=SGD,
            mask_optimizer=SGD,
            **options,
        )
        return state.params, getattr(state.mask, "maps", state.mask)

    return run


def evaluate_case(dtype):
    params, tasks = params_and_rows(dtype, 2, 3)
    sizes = jax.tree.map(lambda x: jnp.full(x.shape, 0.1, x.dtype), params)
    jaxsparse.evaluate(params, sizes, (tasks, tasks), loss_fn=LOSS, inner_steps=1)
    return params


def lamaml_case(gate, loss_fn=LOSS, theta=None, **options):
    def run(dtype):
        params, rows = params_and_rows(dtype, 4)
        _, replay = params_and_rows(dtype, 5)
        sgd = {"mask_optimizer": SGD, "theta_optimizer": theta}
        state = jaxsparse.init_lamaml_state(params, gate, jax.random.key(0), **sgd)
        state, _ = jaxsparse.lamaml_step(
            state,
            rows,
            replay,
            jax.random.key(1),
            loss_fn=loss_fn,
            gate=gate,
            replay_weights=jnp.ones(5, jnp.float32),
            **sgd,
            **options,
        )
        return state.params, state.mask

    return run


def cmaml_case(gate, optimizer=SGD, **options):
    def run(dtype):
        params, rows = params_and_rows(dtype, 6)
        sgd = {"theta_optimizer": optimizer, "mask_optimizer": optimizer}
        state = jaxsparse.init_cmaml_state(
            params, gate, jax.random.key(0), batch=rows, capacity=1, **sgd
        )
        for _ in range(2):
            state, _ = jaxsparse.cmaml_step(
                state,
                rows,
                jax.random.key(1),
                loss_fn=LOSS,
                gate=gate,
                inner_steps=1,
                detection_threshold=0.1,
                modulation=1.0,
                **sgd,
                **options,
            )
        return state.params, state.fast_params, state.mask

    return run


def er_case(loss_fn):
    def run(dtype):
        params, rows = params_and_rows(dtype, 4)
        weights = jnp.ones(4, jnp.float32)
        state = er.init_online_state(params, SGD)
        return er.er_step(
            state,
            rows,
            rows,
            loss_fn=loss_fn,
            optimizer=SGD,
            replay_weights=weights,
            clip_norm=1.0,
        )[0].params

    return run


def mer_case(loss_fn):
    def run(dtype):
        params, row = params_and_rows(dtype, 1)
        _, replay = params_and_rows(dtype, 2, 2)
        return mer.mer_step(
            er.init_online_state(params),
            row,
            replay,
            loss_fn=loss_fn,
            learning_rate=0.1,
            within_batch_rate=0.5,
            across_batch_rate=0.5,
            clip_norm=1.0,
        )[0].params

    return run


def gem_case(loss_fn):
    def run(dtype):
        params, rows = params_and_rows(dtype, 4)
        _, memory = params_and_rows(dtype, 3, 2)
        memory = (-memory[0], memory[1])
        state = er.init_online_state(params, SGD)
        return gem.gem_step(state, rows, memory, 2, loss_fn=loss_fn, optimizer=SGD, clip_norm=1.0)[
            0
        ].params

    return run


def agem_case(dtype):
    params, rows = params_and_rows(dtype, 4)
    state = er.init_online_state(params, SGD)
    weights = jnp.ones(4, jnp.float32)
    return gem.agem_step(state, rows, (-rows[0], rows[1]), weights, loss_fn=LOSS, optimizer=SGD)[
        0
    ].params


def bgd_case(dtype):
    params, rows = params_and_rows(dtype, 4)
    rule = bgd.bgd(1.0)
    state = er.init_online_state(bgd.gaussian(params), rule)
    return bgd.bgd_step(state, rows, jax.random.key(1), loss_fn=LOSS, optimizer=rule, samples=2)[
        0
    ].params


def metabgd_case(dtype):
    params, rows = params_and_rows(dtype, 4)
    rule = bgd.bgd(1.0)
    state = online.init_metabgd_state(bgd.gaussian(params), rule)
    sizes = jax.tree.map(lambda x: jnp.asarray(0.1, x.dtype), params)
    return online.metabgd_step(
        state,
        rows,
        jax.random.key(1),
        loss_fn=LOSS,
        step_sizes=sizes,
        inner_steps=1,
        optimizer=rule,
        samples=2,
    )[0].params


def frozen_case(dtype):
    params, rows = params_and_rows(dtype, 4)
    sizes = jax.tree.map(lambda x: jnp.asarray(0.1, x.dtype), params)
    masked = online.self_masked_loss(LOSS, lambda name: name.startswith("dense"))
    state = online.FrozenState(params, params)
    return online.frozen_maml_step(state, rows, loss_fn=masked, step_sizes=sizes, inner_steps=1)[
        0
    ].fast_params


def buffer_case(dtype):
    _, rows = params_and_rows(dtype, 4)
    row = jax.tree.map(lambda x: x[0], rows)
    kept = buffer.add(buffer.init_buffer(row, 3), rows, jax.random.key(0))
    buffer.sample(kept, jax.random.key(1), 2)
    memory = buffer.write(buffer.init_memory(row, 2, 2), jnp.int32(0), rows)
    buffer.sample_earlier(memory, jnp.int32(1), jax.random.key(1), 2)
    return jnp.zeros((), dtype)


def metrics_case(dtype):
    R, initial = jnp.eye(3, dtype=dtype), jnp.zeros(3, dtype)
    metrics.retained_accuracy(R), metrics.learning_accuracy(R)
    metrics.backward_transfer_interference(R)
    return metrics.forward_transfer(R, initial)


def network_case(make, shape):
    def run(dtype):
        model = make()
        params = model.init(jax.random.key(0))
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        batch = jnp.ones((2, *shape)), jnp.zeros(2, jnp.int32)
        loss = jaxsparse.cross_entropy(model)
        return jax.grad(lambda p: loss(p, batch)[0])(params)

    return run


def straight_through_case(dtype):
    m = jnp.linspace(-1, 1, 4, dtype=dtype)
    return jax.grad(lambda m: jnp.sum(jaxsparse.binary_mask(m, 0.5) * jaxsparse.relu_mask(m)))(m)


def whole(params, batch):
    """The loss as a plain function, without `split` and weights."""
    return LOSS(params, batch)


CASES = {
    **{f"gate {name}": gate_case(gate) for name, gate in GATES.items()},
    "straight-through": straight_through_case,
    "adapt": adapt_case(),
    "adapt to second order": adapt_case(second_order=True),
    "adapt in no steps": adapt_case(steps=0),
    "adapt in no steps to second order": adapt_case(second_order=True, steps=0),
    "sparse-MAML": maml_case(GATES["binary"]),
    "sparse-MAML side by side": maml_case(GATES["binary"], task_loop="vmap"),
    "MAML": maml_case(GATES["constant"], second_order=True),
    "sparse-MAML+": maml_case(GATES["generated"]),
    "shared rates": maml_case(GATES["shared"]),
    "evaluate": evaluate_case,
    "sparse-La-MAML": lamaml_case(GATES["constant init"]),
    "sparse-La-MAML, whole": lamaml_case(GATES["constant init"], whole, inner_clip=0.1),
    "Sync": lamaml_case(
        GATES["rectified"], theta=SGD, meta_iterates="last", inner_batch_size=2, second_order=True
    ),
    "sparse-C-MAML": cmaml_case(GATES["binary"]),
    "sparse-C-MAML, one pair": cmaml_case(GATES["binary"], pairs="one"),
    "C-MAML by Adam": cmaml_case(GATES["shared"], optimizer=optax.adam(0.1)),
    "C-MAML": cmaml_case(GATES["shared"], mask_theta=True, restart_now=True),
    "ER": er_case(LOSS),
    "ER, whole": er_case(whole),
    "MER": mer_case(LOSS),
    "MER, whole": mer_case(whole),
    "GEM": gem_case(LOSS),
    "GEM, whole": gem_case(whole),
    "A-GEM": agem_case,
    "BGD": bgd_case,
    "MetaBGD": metabgd_case,
    "frozen MAML": frozen_case,
    "buffers": buffer_case,
    "metrics": metrics_case,
    "conv4": network_case(lambda: nn.conv4(3, 4, (16, 16, 1)), (16, 16, 1)),
    "mlp": network_case(lambda: nn.mlp(3, (4,), (4, 4, 1)), (4, 4, 1)),
    "resnet12": network_case(lambda: nn.resnet12(3, (2, 2, 2, 4), (8, 8, 1)), (8, 8, 1)),
    "strided cnn": network_case(lambda: nn.strided_cnn(3, 4, 1, (4,), (4, 4, 1)), (4, 4, 1)),
    "normalised": network_case(
        lambda: nn.normalised(nn.mlp(3, (4,), (4, 4, 1)), (0.5,), (0.5,)), (4, 4, 1)
    ),
}


@contextlib.contextmanager
def strict():
    """JAX neither promotes dtypes nor broadcasts arrays of another rank."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def check_dtypes(name, dtype):
    """Traced only: this checks dtypes and ranks, and nothing is compiled."""
    got = jax.eval_shape(lambda: CASES[name](dtype))
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", CASES)
def test_under_strict_promotion(name, dtype):
    with strict():
        check_dtypes(name, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_under_x64(name, dtype):
    with jax.enable_x64(True), strict():
        check_dtypes(name, dtype)


# in execution


RUNS = ("adapt", "adapt in no steps", "adapt in no steps to second order", "evaluate")
STEPS = ("sparse-MAML", "sparse-La-MAML", "sparse-C-MAML", "ER", "MER", "GEM", "A-GEM", "BGD")


def values(name):
    return [np.asarray(x) for x in jax.tree.leaves(CASES[name]("float32"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS, *STEPS])
def test_without_compilation(name):
    compiled = values(name)
    with jax.disable_jit():
        for got, want in zip(values(name), compiled, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)


def test_no_steps_without_compilation():
    with jax.disable_jit():
        phi, info = jaxsparse.adapt(
            lambda w, x: (w @ x, {"a": w[0]}), jnp.ones(2), jnp.ones(2), jnp.ones(2), 0
        )
    assert phi.tolist() == [1, 1]
    assert {n: x.shape for n, x in info.items()} == {"loss": (0,), "a": (0,)}


@pytest.mark.parametrize("make", [jax.random.PRNGKey, lambda s: jax.random.key(s, impl="rbg")])
@pytest.mark.parametrize("name", GATES)
def test_other_kinds_of_keys(make, name):
    params = {"conv": jnp.ones((3, 3, 1, 2)), "head": jnp.ones(5)}
    m = GATES[name].init(make(0), params)
    sizes = GATES[name].apply(m, make(1))
    assert jax.tree.structure(sizes) == jax.tree.structure(params)
    MODEL.init(make(0))


def test_nan_checks_pass_on_a_finite_loss():
    params, rows = params_and_rows("float32", 4)
    with jax.debug_nans(True), jax.enable_checks(True):
        gradient = jax.grad(lambda p: LOSS(p, rows)[0])(params)
        assert np.isfinite(jax.jit(LOSS)(params, rows)[0])
    assert np.isfinite(gradient["head"]["bias"]).all()


def test_unknown_labels_are_detected_under_strict_promotion():
    """In every dtype of labels, and in the dtype of the parameters."""
    with strict():
        for kind in ("int8", "uint8", "int16", "uint32"):
            params, (images, labels) = params_and_rows("bfloat16", 4)
            loss, aux = jax.eval_shape(LOSS, params, (images, labels.astype(kind)))
            assert (loss.dtype, aux["accuracy"].dtype) == (jnp.bfloat16, jnp.float32)
