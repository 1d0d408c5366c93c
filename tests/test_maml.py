"""The meta-step and the evaluation against PyTorch, and under JAX's transformations."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    WAYS,
    Classifier,
    classification_loss,
    classification_tasks,
    quick_jit,
    task_list,
)

import jaxsparse
from jaxsparse import evaluate, gates, init_state, nn, sparse_maml_step

ALPHA = 0.3
# gate: (ours, its name in the reference); the ranges hold values of both signs
GATES = {
    "binary": gates.binary(ALPHA),
    "half_slope": gates.binary(ALPHA, slope=0.5),
    "relu": gates.relu((-0.1, 0.4)),
    "rectified": gates.rectified((-0.1, 0.4)),
    "linear": gates.linear((-0.1, 0.4)),
    "constant": gates.constant(ALPHA),
}
SGD = optax.sgd(0.1)


def nesterov(rate):
    return optax.sgd(
        rate, momentum=0.9, nesterov=True
    ), lambda torch: lambda p: torch.optim.SGD(p, rate, momentum=0.9, nesterov=True)


def adam(rate):
    return optax.adam(rate), lambda torch: lambda p: torch.optim.Adam(p, rate)


def make_step(loss_fn, gate, theta_optimizer, mask_optimizer, inner_steps=3, **options):
    return functools.partial(
        sparse_maml_step,
        loss_fn=loss_fn,
        gate=gate,
        inner_steps=inner_steps,
        theta_optimizer=theta_optimizer,
        mask_optimizer=mask_optimizer,
        **options,
    )


def assert_trees_close(got, want, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def follow_pytorch(
    params, gate, reference_gate, loss_fn, reference_loss, batches, theta, mask, inner_steps, **opts
):
    """Run a meta-step per batch of tasks in both frameworks, and compare the states."""
    reference = pytest.importorskip("torch_reference")
    (theta_tx, theta_torch), (mask_tx, mask_torch) = theta, mask
    step = quick_jit(make_step(loss_fn, gate, theta_tx, mask_tx, inner_steps, **opts))
    state = init_state(params, gate, theta_tx, mask_tx, jax.random.key(7))
    torch_gate = reference_gate(reference, state.mask)
    learner = reference.MetaLearner(
        reference_loss(reference),
        params,
        torch_gate,
        theta_torch(reference.torch),
        mask_torch(reference.torch),
    )
    order = reference.second_order if opts.get("second_order") else reference.first_order
    for tasks in batches:
        codes_from(state.key, torch_gate, reference.torch)
        pairs = [reference.batch_to_torch(task) for task in task_list(tasks)]
        sizes = [torch_gate.sizes(i) for i in range(len(pairs))]
        inner = [
            reference.adapt(learner.loss_fn, learner.theta, s, support, inner_steps)[2]
            for s, (support, _) in zip(sizes, pairs, strict=True)
        ]
        loss = learner.step(pairs, inner_steps, order)
        state, metrics = step(state, tasks)
        frozen = np.mean(
            [np.mean((x == 0).numpy().ravel()) * x.numel() for s in sizes for x in s.values()]
        )
        entries = np.mean([x.numel() for s in sizes for x in s.values()])
        np.testing.assert_allclose(metrics["sparsity"], frozen / entries, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(metrics["inner_loss"], np.mean(inner, 0), rtol=1e-5, atol=1e-5)
        for got, want in ((state.params, learner.theta), (state.mask, torch_gate.mask)):
            want = {name: x.detach().numpy() for name, x in want.items()}
            assert_trees_close(reference.flat(got), want, atol=1e-5)
    return state


def codes_from(key, torch_gate, torch):
    """The codes z that a step with `key` draws: one key for the gate, split over the tasks."""
    if hasattr(torch_gate, "codes"):
        _, gate_key = jax.random.split(key)
        draws = [jax.random.normal(k, (EMBEDDING,)) for k in jax.random.split(gate_key, 3)]
        torch_gate.codes = [torch.tensor(np.asarray(z, np.float64)) for z in draws]


def elementwise(kind):
    return lambda reference, mask: reference.ElementwiseGate(kind, mask, ALPHA)


# By default every gate has every number of steps and every optimiser, but not every pair.
CASES = [("binary", 6, nesterov), ("binary", 1, adam), ("relu", 6, adam), ("relu", 1, nesterov)]
CASES += [
    pytest.param(kind, k, o, marks=pytest.mark.slow)
    for kind, k, o in (
        ("binary", 1, nesterov),
        ("binary", 6, adam),
        ("relu", 1, adam),
        ("relu", 6, nesterov),
    )
]
CASES += [("half_slope", 6, nesterov), ("linear", 6, nesterov)]
CASES += [("rectified", 6, adam), ("constant", 6, adam)]


@pytest.mark.parametrize("kind, steps, optimizer", CASES)
def test_first_order_step_matches_pytorch(kind, steps, optimizer):
    params = Classifier.init(0)
    batches = [classification_tasks(seed) for seed in range(3)]
    state = follow_pytorch(
        params,
        GATES[kind],
        elementwise(kind),
        classification_loss,
        lambda reference: reference.mlp_loss,
        batches,
        optimizer(0.03),
        optimizer(0.05 if optimizer is adam else 1.0),
        steps,
    )
    assert state.step == 3
    start = GATES[kind].init(jax.random.split(jax.random.key(7))[0], params)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()) > 0.01, state.mask, start)
    assert set(jax.tree.leaves(moved)) == {kind != "constant"}


@pytest.mark.parametrize("kind", ["binary", "linear"])
def test_second_order_step_matches_pytorchs_double_backward(kind):
    follow_pytorch(
        Classifier.init(0),
        GATES[kind],
        elementwise(kind),
        classification_loss,
        lambda reference: reference.mlp_loss,
        [classification_tasks(seed) for seed in range(2)],
        nesterov(0.1),
        nesterov(0.5),
        4,
        second_order=True,
    )


EMBEDDING = 16
CONV4_GATES = {
    "binary": (GATES["binary"], elementwise("binary")),
    "relu": (GATES["relu"], elementwise("relu")),
    "generated": (
        gates.generated(ALPHA, embedding=EMBEDDING),
        lambda reference, mask: reference.GeneratedGate(mask, ALPHA),
    ),
}


@pytest.mark.parametrize("kind", CONV4_GATES)
def test_conv4_step_matches_pytorch(kind):
    model = nn.conv4(ways=3, width=4, image_shape=(28, 28, 1))
    follow_pytorch(
        quick_jit(model.init)(jax.random.key(0)),
        *CONV4_GATES[kind],
        jaxsparse.cross_entropy(model),
        lambda reference: reference.conv4_loss,
        [classification_tasks(seed, samples=6, shape=(28, 28, 1)) for seed in range(2)],
        nesterov(0.01),
        nesterov(0.1),
        3,
    )


# A table of gates, each with every way to run it

ALL_GATES = GATES | {
    "head_only": gates.head_only(ALPHA),
    "body_only": gates.all_but_head(ALPHA),
    "generated": gates.generated(ALPHA, embedding=8),
}


class ConvClassifier:
    """`Classifier` behind a rank-4 kernel, which the generated gate has a linear map for."""

    @staticmethod
    def init(seed):
        return Classifier.init(seed) | {"conv": jnp.ones((1, 1, 5, 5)) / 5}

    @staticmethod
    def apply(params, inputs):
        return Classifier.apply(params, inputs @ params["conv"][0, 0])


CONV_LOSS = jaxsparse.cross_entropy(ConvClassifier)


@pytest.mark.parametrize(
    "kind, second_order", [("binary", False), ("binary", True), ("generated", False)]
)
def test_task_loops_agree(kind, second_order):
    gate = ALL_GATES[kind]
    state = init_state(ConvClassifier.init(0), gate, SGD, SGD, jax.random.key(1))
    results = [
        quick_jit(make_step(CONV_LOSS, gate, SGD, SGD, second_order=second_order, task_loop=loop))(
            state, classification_tasks(0)
        )
        for loop in ("vmap", "scan", 2)
    ]
    (a, a_metrics), *others = results
    for b, b_metrics in others:
        assert_trees_close((a.params, a.mask, a_metrics), (b.params, b.mask, b_metrics))


def batch_sizes(task_loop, tasks=5):
    """The numbers of tasks that the loss sees mapped together, as traced."""
    seen = set()

    @jax.custom_batching.custom_vmap
    def watched(x):
        return x

    @watched.def_vmap
    def rule(axis_size, in_batched, x):
        seen.add(axis_size)
        return x, True

    evaluate(
        jnp.zeros(2), jnp.ones(2), (jnp.ones((tasks, 2)),) * 2,
        loss_fn=lambda w, x: jnp.sum((w - watched(x)) ** 2), inner_steps=1, task_loop=task_loop,
    )  # fmt: skip
    return seen


@pytest.mark.parametrize(
    "task_loop, sizes",
    [("auto", set()), ("scan", set()), (1, set()), (2, {2, 1}), (5, {5}), (9, {5}), ("vmap", {5})],
)
def test_a_task_loop_maps_so_many_tasks_together(task_loop, sizes):
    """Of five tasks; two at once leave a group of one."""
    assert batch_sizes(task_loop) == sizes


def test_no_second_compilation(caplog):
    """New tasks and the returned state reuse the first call's program, also with weak types."""
    traces = 0

    def loss_fn(params, batch):
        nonlocal traces
        traces += 1
        return classification_loss(params, batch)

    params = Classifier.init(0)
    params["head"]["b"] = jnp.full(3, 0.5)
    assert params["head"]["b"].weak_type
    tx = optax.adam(1e-3)
    state = init_state(params, GATES["binary"], tx, tx, jax.random.key(1))
    step = make_step(loss_fn, GATES["binary"], tx, tx)
    batches = [classification_tasks(seed) for seed in range(3)]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        state, _ = step(state, batches[0])
        assert "Compiling jit(sparse_maml_step)" in caplog.text
        caplog.clear()
        traced = traces
        for tasks in batches[1:]:
            state, _ = step(state, tasks)
    assert traces == traced > 0
    assert caplog.text == ""


def lowered_step(model, params, tasks):
    gate = gates.binary(ALPHA)
    state = init_state(params, gate, SGD, SGD, jax.random.key(1))
    options = {"loss_fn": jaxsparse.cross_entropy(model), "inner_steps": 2}
    optimizers = {"theta_optimizer": SGD, "mask_optimizer": SGD}
    return sparse_maml_step.lower(state, tasks, gate=gate, **options, **optimizers)


def lowered_evaluation(model, params, tasks):
    options = {"loss_fn": jaxsparse.cross_entropy(model), "inner_steps": 2}
    return evaluate.lower(params, params, tasks, **options)


@pytest.mark.parametrize(
    "lowered", [pytest.param(lowered_step, marks=pytest.mark.slow), lowered_evaluation]
)
def test_products_are_float32_unless_the_caller_sets_a_precision(lowered):
    # Conv4's layers have custom derivatives, which must obey, too. Compiled blocks are always
    # float32.
    model = nn.conv4(ways=WAYS, width=2, image_shape=(16, 16, 3), blocks="xla")
    params, tasks = model.init(jax.random.key(0)), classification_tasks(0, shape=(16, 16, 3))

    def precisions():
        text = lowered(model, params, tasks).as_text()
        assert text.count("dot_general") > 10
        return set(re.findall(r"precision = \[(\w+), (\w+)\]", text))

    assert precisions() == {("HIGHEST", "HIGHEST")}
    wanted_by_name = {"tensorfloat32": "HIGH", "bfloat16": "DEFAULT", "float32": "HIGHEST"}
    for name, wanted in wanted_by_name.items():
        with jax.default_matmul_precision(name):
            assert precisions() == {(wanted, wanted)}
    assert precisions() == {("HIGHEST", "HIGHEST")}


def test_scan_over_meta_steps():
    gate, tx = ALL_GATES["generated"], optax.adam(1e-2)
    start = init_state(ConvClassifier.init(0), gate, tx, tx, jax.random.key(1))
    step = make_step(CONV_LOSS, gate, tx, tx)
    batches = [classification_tasks(seed) for seed in range(3)]
    state, losses = start, []
    one_step = quick_jit(step)
    for tasks in batches:
        state, metrics = one_step(state, tasks)
        losses.append(metrics["loss"])
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *batches)
    end, scanned = quick_jit(functools.partial(jax.lax.scan, step))(start, stacked)
    np.testing.assert_allclose(scanned["loss"], losses, rtol=1e-5)
    assert_trees_close((end.params, end.mask), (state.params, state.mask))
    assert end.step == 3 and end.key == state.key != start.key


def test_vmap_over_seeds():
    gate, tasks = ALL_GATES["generated"], classification_tasks(0)
    make_state = functools.partial(init_state, ConvClassifier.init(0), gate, SGD, SGD)
    states = quick_jit(jax.vmap(make_state))(jax.random.split(jax.random.key(2), 2))
    step = make_step(CONV_LOSS, gate, SGD, SGD)
    new, metrics = quick_jit(jax.vmap(step, (0, None)))(states, tasks)
    step = quick_jit(step)
    for i in range(2):
        alone, alone_metrics = step(jax.tree.map(lambda x, i=i: x[i], states), tasks)
        together = jax.tree.map(lambda x, i=i: x[i], (new.params, new.mask, new.theta_opt, metrics))
        assert_trees_close(together, (alone.params, alone.mask, alone.theta_opt, alone_metrics))


def test_meta_gradient_flows_through_the_step():
    """`grad` of the next step's loss with respect to the tasks of this step."""
    state = init_state(Classifier.init(0), GATES["linear"], SGD, SGD, jax.random.key(1))
    step = make_step(classification_loss, GATES["linear"], SGD, SGD, 1, second_order=True)
    (support, (inputs, labels)), probe = classification_tasks(0), classification_tasks(1)

    def next_loss(inputs):
        return step(step(state, (support, (inputs, labels)))[0], probe)[1]["loss"]

    direction = jax.random.normal(jax.random.key(3), inputs.shape)
    loss, d_loss = quick_jit(next_loss), quick_jit(jax.grad(next_loss))
    slope = jnp.vdot(d_loss(inputs), direction)
    difference = (loss(inputs + 0.02 * direction) - loss(inputs - 0.02 * direction)) / 0.04
    np.testing.assert_allclose(slope, difference, rtol=0.05)


@pytest.mark.parametrize("kind", ["binary", "generated"])
def test_bfloat16(kind):
    gate, tasks = ALL_GATES[kind], classification_tasks(0)
    tx = optax.sgd(0.1, momentum=0.9)
    state = init_state(ConvClassifier.init(0), gate, tx, tx, jax.random.key(1))

    def lower(tree):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    low = init_state(lower(state.params), gate, tx, tx, jax.random.key(1))
    # Both start from the same numbers, because the two dtypes draw differently.
    mask = jax.tree.map(lambda x, like: x.astype(like.dtype), state.mask, low.mask)
    state = state._replace(
        params=jax.tree.map(lambda x: x.astype(jnp.float32), low.params),
        mask=jax.tree.map(lambda x: x.astype(jnp.float32), mask),
    )
    step = quick_jit(make_step(CONV_LOSS, gate, tx, tx, 6))
    new, metrics = step(low._replace(mask=mask), tasks)
    wanted, wanted_metrics = step(state, tasks)
    assert {x.dtype for x in jax.tree.leaves(new.params)} == {jnp.dtype(jnp.bfloat16)}
    assert [x.dtype for x in jax.tree.leaves(new)] == [x.dtype for x in jax.tree.leaves(low)]
    np.testing.assert_allclose(metrics["loss"], wanted_metrics["loss"], rtol=0.02)
    moved = jax.tree.map(lambda a, b: a - b, wanted.params, state.params)
    got = jax.tree.map(lambda a, b: a.astype(jnp.float32) - b, new.params, state.params)
    moved, got = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (moved, got))
    assert np.linalg.norm(got - moved) < 0.1 * np.linalg.norm(moved)


@pytest.mark.parametrize(
    "params",
    [jnp.ones(2), (jnp.ones(2), [jnp.ones((2, 1)), (jnp.ones(()),)]), {"a": [jnp.ones(3)]}],
    ids=["array", "tuples", "dict"],
)
def test_any_pytree(params):
    """On (w - t)^2 with one step of 1/2 the query loss is (s - q)^2 whatever theta is."""

    def loss_fn(p, batch):
        return sum(jnp.mean((leaf - batch) ** 2) for leaf in jax.tree.leaves(p))

    count = len(jax.tree.leaves(params))
    gate = gates.constant(0.5)
    scale = jax.tree.map(lambda x: jnp.full(x.shape, 0.5 * x.size), params)  # undoes the mean
    state = init_state(params, gate, SGD, SGD, jax.random.key(0))._replace(mask=scale)
    tasks = (jnp.array([1.0, 2.0]), jnp.array([2.0, 5.0]))
    new, metrics = make_step(loss_fn, gate, SGD, SGD, 1)(state, tasks)
    np.testing.assert_allclose(metrics["loss"], count * (1 + 9) / 2, rtol=1e-6)
    # d theta = c = 2 (s - q) / n, its mean over the tasks -4 / n, times the rate of 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b + 0.4 / b.size, rtol=1e-6), new.params, params
    )


def test_init_state_leaves_the_callers_arrays_alone():
    """A step with a donated state must not delete the arrays that the state was made from."""
    params = {"w": jnp.ones(3)}
    state = init_state(params, GATES["binary"], SGD, SGD, jax.random.key(0))
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s.params), donate_argnums=0)(state)
    np.testing.assert_array_equal(params["w"], np.ones(3))


# Evaluation


@pytest.mark.parametrize("task_loop", ["vmap", "scan", 2])
def test_evaluate_matches_pytorchs_loop(task_loop):
    reference = pytest.importorskip("torch_reference")
    params, tasks = Classifier.init(0), classification_tasks(0)
    mask = GATES["relu"].init(jax.random.key(1), params)
    metrics = evaluate(
        params,
        GATES["relu"].apply(mask, None),
        tasks,
        loss_fn=classification_loss,
        inner_steps=5,
        task_loop=task_loop,
    )
    sizes = reference.ElementwiseGate("relu", mask, 1.0).sizes(0)
    for i, (support, query) in enumerate(map(reference.batch_to_torch, task_list(tasks))):
        phi, _, losses = reference.adapt(
            reference.mlp_loss, reference.to_torch(params), sizes, support, 5
        )
        loss = reference.mlp_loss(phi, query).item()
        np.testing.assert_allclose(metrics["loss"][i], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["inner_loss"][i], losses, rtol=1e-5)
    assert metrics["accuracy"].shape == (3,)


@pytest.mark.parametrize("task_loop", ["vmap", "scan", 2])
def test_evaluate_with_step_sizes_per_task(task_loop):
    params, tasks = Classifier.init(0), classification_tasks(0)
    rates = jnp.array([0.0, 0.1, 0.5])
    sizes = jax.tree.map(lambda x: jnp.stack([rate * jnp.ones_like(x) for rate in rates]), params)
    options = {"loss_fn": classification_loss, "inner_steps": 4, "task_loop": task_loop}
    together = evaluate(params, sizes, tasks, step_sizes_per_task=True, **options)
    for i in range(3):
        own, task = jax.tree.map(lambda x, i=i: x[i : i + 1], (sizes, tasks))
        alone = evaluate(params, jax.tree.map(lambda x: x[0], own), task, **options)
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i : i + 1], together), alone)


@pytest.mark.parametrize("task_loop", ["vmap", "scan", 2])
@pytest.mark.parametrize("shape", [(), (1, 2), (2, 2), (4, 2)])
def test_step_sizes_of_other_tasks_are_refused(shape, task_loop):
    tasks, options = (jnp.ones((3, 2)), jnp.ones((3, 2))), {"inner_steps": 1}
    with pytest.raises(ValueError, match=r"^step_sizes "):
        evaluate(
            jnp.zeros(2), jnp.full(shape, 0.5), tasks, loss_fn=lambda w, x: jnp.sum((w - x) ** 2),
            step_sizes_per_task=True, task_loop=task_loop, **options,
        )  # fmt: skip


def test_a_numpy_integer_is_a_number_of_tasks():
    tasks = jnp.arange(6.0).reshape(3, 2), jnp.ones((3, 2))
    options = {"loss_fn": lambda w, x: jnp.sum((w - x) ** 2), "inner_steps": 1}
    metrics = evaluate(jnp.zeros(2), jnp.full(2, 0.25), tasks, task_loop=np.int64(2), **options)
    # Half way from 0 to the support set: (x / 2 - 1)^2 of both entries.
    np.testing.assert_allclose(metrics["loss"], [1.25, 0.25, 3.25])


# Errors

BATCH = (jnp.ones((3, 4, 5)), jnp.zeros((3, 4), jnp.int32))


@pytest.mark.parametrize(
    "tasks, options, error, message",
    [
        (
            (jnp.ones(()), jnp.ones(3)),
            {},
            ValueError,
            "^tasks must have the same leading.*0: scalar, 1: ",
        ),
        (
            (jnp.ones(()), jnp.ones(())),
            {},
            ValueError,
            "^tasks must have the same leading.*0: scalar, 1: scalar",
        ),
        (
            (BATCH, jax.tree.map(lambda x: x[:2], BATCH)),
            {},
            ValueError,
            r"^tasks must have the same leading task axis in every leaf, "
            r"got 0/0: \(3,\).*1/0: \(2,\)",
        ),
        ((BATCH, ()), {"inner_steps": -1}, ValueError, "^inner_steps must be 0 or more, got -1"),
        ((BATCH, ()), {"inner_steps": 1.0}, TypeError, "^inner_steps must be a Python int"),
        (((), ()), {}, ValueError, "^tasks has no leaves"),
        ((jnp.ones((0, 2)), jnp.ones((0, 2))), {}, ValueError, "^tasks has no tasks"),
        ((jnp.ones((3, 2)),), {}, TypeError, r"^tasks must be a pair .*\(\(\*,\)\)"),
        (jnp.ones((3, 2)), {}, TypeError, r"^tasks must be a pair .*\(\*\)"),
        ((BATCH, BATCH), {"task_loop": "map"}, ValueError, "^task_loop must be.*got 'map'"),
        ((BATCH, BATCH), {"task_loop": 0}, ValueError, "^task_loop must be.*got 0"),
        ((BATCH, BATCH), {"task_loop": True}, ValueError, "^task_loop must be.*got True"),
        (
            (BATCH, (jnp.ones((3, 4, 5)), jnp.zeros((3, 2), jnp.int32))),
            {},
            ValueError,
            r"^labels have shape \(2,\).*logits \(4, 3\)",
        ),
        (
            (BATCH, (jnp.ones((3, 4, 5)), jnp.zeros((3, 4)))),
            {},
            TypeError,
            "^labels must be integers, got float32",
        ),
    ],
)
@pytest.mark.parametrize("function", ["step", "evaluate"])
def test_errors_name_the_argument(function, tasks, options, error, message):
    params = Classifier.init(0)
    options = {"loss_fn": classification_loss, "inner_steps": 1} | options
    with pytest.raises(error, match=message):
        if function == "evaluate":
            evaluate(params, params, tasks, **options)
        else:
            gate = GATES["constant"]
            state = init_state(params, gate, SGD, SGD, jax.random.key(0))
            sparse_maml_step(
                state, tasks, gate=gate, theta_optimizer=SGD, mask_optimizer=SGD, **options
            )


def test_mask_of_other_parameters():
    gate = GATES["constant"]
    state = init_state(Classifier.init(0), gate, SGD, SGD, jax.random.key(0))
    mask = {"hidden": state.mask["hidden"]}
    with pytest.raises(ValueError, match=r"^step_sizes must have the tree of params"):
        make_step(classification_loss, gate, SGD, SGD)(
            state._replace(mask=mask), classification_tasks(0)
        )


def test_integer_params_are_refused():
    unchecked = gates.Gate(lambda key, params: params, lambda m, key: m)
    with pytest.raises(TypeError, match=r"^params\[n\] must be floating, got int32"):
        init_state({"n": jnp.arange(3)}, unchecked, SGD, SGD, jax.random.key(0))
