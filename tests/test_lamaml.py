"""One glance against NumPy and PyTorch, and under JAX's transformations."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    Classifier,
    assert_trees_close,
    classification_loss,
    clip,
    float64,
    loss_and_gradient,
    not_used,
    quick_jit,
    rows,
    split_loss,
    to_numpy,
)

from jaxsparse import (
    LaMAMLState,
    _first_layer,
    cross_entropy,
    gates,
    init_lamaml_state,
    lamaml_step,
    nn,
)
from jaxsparse.checks import leaves_by_name

ROWS, REPLAYED = 6, 4
ALPHA, MASK_RATE, THETA_RATE = 0.3, 2.0, 0.5
RANGE = (-0.1, 0.4)
NORMED = cross_entropy(nn.conv4(3, 2, (16, 16, 1), blocks="xla"))
MASK_SGD, THETA_SGD = optax.sgd(MASK_RATE), optax.sgd(THETA_RATE)

# gate: (ours, its step sizes, the factor from d step to dm)
GATES = {
    "binary": (
        gates.binary(ALPHA, init=RANGE),
        lambda m: ALPHA * (m >= 0),
        lambda m: ALPHA,
    ),
    "half_slope": (
        gates.binary(ALPHA, slope=0.5, init=RANGE),
        lambda m: ALPHA * (m >= 0),
        lambda m: 0.5 * ALPHA,
    ),
    "rectified": (gates.rectified(RANGE), lambda m: np.maximum(m, 0), lambda m: m > 0),
    "linear": (gates.linear(RANGE), lambda m: m, lambda m: 1.0),
    "constant": (gates.constant(ALPHA), lambda m: m, lambda m: 0.0),
}


def numpy_glance(
    theta,
    m,
    batch,
    replay,
    replay_weights,
    kind,
    *,
    inner_kind=None,
    sync=False,
    train_mask=True,
    chunk=1,
    inner_clip=None,
    clip_norm=2.0,
    iterates="all",
    gradient_sum="before",
):
    """A glance in float64; the rows of `batch` are in the order of the inner steps."""
    names, n = list(theta), len(batch[1])
    _, inner_size, factor = GATES[inner_kind or kind]
    _, size, _ = GATES[kind]
    meta, weights = batch, np.ones(n)
    if replay is not None:
        meta = tuple(np.concatenate(pair) for pair in zip(replay, batch, strict=True))
        own = np.ones(len(replay[1])) if replay_weights is None else replay_weights
        weights = np.concatenate([own, weights])
    a = {i: inner_size(m[i]) for i in names}
    phi, total = theta, dict.fromkeys(names, 0.0)
    terms, inner = [], []
    for at in range(0, n, chunk):
        rows = tuple(x[at : at + chunk] for x in batch)
        loss, g = loss_and_gradient(phi, rows, np.ones(chunk))
        inner.append(loss)
        if inner_clip is not None:
            g = {i: np.clip(x, -inner_clip, inner_clip) for i, x in g.items()}
        phi = {i: phi[i] - a[i] * g[i] for i in names}
        if gradient_sum == "after":  # as printed in Algorithm 1: G <- G + grad L(phi, B_k) last
            _, g = loss_and_gradient(phi, rows, np.ones(chunk))
            if inner_clip is not None:
                g = {i: np.clip(x, -inner_clip, inner_clip) for i, x in g.items()}
        total = {i: total[i] + g[i] for i in names}
        loss, h = loss_and_gradient(phi, meta, weights)
        terms.append((loss, h, {i: -h[i] * total[i] for i in names}))
    terms = terms if iterates == "all" else terms[-1:]
    loss = np.mean([t[0] for t in terms])
    d_theta, d_size = ({i: np.mean([t[j][i] for t in terms], 0) for i in names} for j in (1, 2))
    d_theta, theta_norm = clip(d_theta, clip_norm)
    metrics = {"loss": loss, "inner_loss": inner, "theta_norm": theta_norm}
    if train_mask:
        d_m = {i: d_size[i] * factor(m[i]) for i in names}
        d_m, metrics["mask_norm"] = clip(d_m, clip_norm)
        m = {i: m[i] - MASK_RATE * d_m[i] for i in names}
    rate = {i: THETA_RATE if sync else size(m[i]) for i in names}
    return {i: theta[i] - rate[i] * d_theta[i] for i in names}, m, metrics


def start(gate, mask_optimizer=MASK_SGD, theta_optimizer=None, params=None):
    return init_lamaml_state(
        Classifier.init(0) if params is None else params,
        gate,
        jax.random.key(3),
        mask_optimizer=mask_optimizer,
        theta_optimizer=theta_optimizer,
    )


def make_step(gate, mask_optimizer=MASK_SGD, loss_fn=classification_loss, **options):
    return functools.partial(
        lamaml_step, loss_fn=loss_fn, gate=gate, mask_optimizer=mask_optimizer, **options
    )


def follow(
    kind,
    replay="full",
    sync=False,
    reference=numpy_glance,
    glances=3,
    loss_fn=classification_loss,
    **options,
):
    """Run glances here and in the reference, and compare the states and metrics."""
    gate = GATES[kind][0]
    ours = dict(options)
    if inner_kind := ours.pop("inner_kind", None):
        ours["inner_gate"] = GATES[inner_kind][0]
    ours["inner_batch_size"] = ours.pop("chunk", 1)
    ours["meta_iterates"] = ours.pop("iterates", "all")
    mask_sgd = MASK_SGD if ours.pop("train_mask", True) else None
    theta_sgd = THETA_SGD if sync else None
    step = quick_jit(make_step(gate, mask_sgd, loss_fn, theta_optimizer=theta_sgd, **ours))
    state = start(gate, mask_sgd, theta_sgd)
    theta, m = float64(state.params), float64(state.mask)
    for glance in range(glances):
        key = jax.random.key(glance)
        batch = rows(10 + glance, ROWS)
        drawn = None if replay == "empty" else rows(20 + glance, REPLAYED)
        # Two places of the memory are still empty, and one row counts twice.
        weights = np.array([2.0, 1.0, 0.0, 0.0]) if replay == "weighted" else None
        given = None if weights is None else jnp.asarray(weights, jnp.float32)
        state, metrics = step(state, batch, drawn, key, replay_weights=given)
        order = np.asarray(jax.random.permutation(key, ROWS))
        np.testing.assert_array_equal(metrics["order"], order)
        theta, m, wanted = reference(
            theta,
            m,
            to_numpy(jax.tree.map(lambda x, order=order: x[order], batch)),
            None if drawn is None else to_numpy(drawn),
            weights,
            kind,
            sync=sync,
            **options,
        )
        assert_trees_close((float64(state.params), float64(state.mask)), (theta, m))
        assert metrics.keys() == wanted.keys() | {"order", "accuracy"}
        for name, value in wanted.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert state.step == glances
    return state, metrics


CLIPS = {"clipped": 0.02, "unclipped": None}
CASES = [
    {"kind": kind, "sync": sync, "clip_norm": CLIPS[bound], "replay": replay}
    for (kind, sync), (bound, replay) in zip(
        itertools.product(("binary", "half_slope", "rectified", "constant"), (False, True)),
        itertools.cycle(itertools.product(CLIPS, ("full", "empty", "weighted"))),
        strict=False,
    )
]
CASES += [
    {"kind": "half_slope", "chunk": 2},
    {"kind": "binary", "iterates": "last", "clip_norm": None},
    {"kind": "rectified", "iterates": "last", "sync": True, "replay": "empty"},
    {"kind": "binary", "iterates": "last", "clip_norm": None, "gradient_sum": "after"},
    {"kind": "rectified", "chunk": 2, "inner_clip": 0.05, "gradient_sum": "after"},
    {"kind": "rectified", "chunk": 3, "iterates": "last", "replay": "weighted"},
    {"kind": "rectified", "inner_kind": "linear", "inner_clip": 0.05, "chunk": 2},
    {"kind": "constant", "train_mask": False, "sync": True},
]


def name_of(case):
    return "-".join(f"{k}={v}" if k != "kind" else v for k, v in case.items())


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_glances_match_numpy(case):
    state, metrics = follow(**case)
    if case["kind"] == "constant":
        assert_trees_close(state.mask, start(GATES["constant"][0]).mask, 0, 0)
    if case.get("clip_norm") == CLIPS["clipped"] and case["kind"] != "constant":
        assert min(metrics["theta_norm"], metrics["mask_norm"]) > CLIPS["clipped"]


SPLIT_CASES = [CASES[i] for i in (0, 2, 5, 7)]  # each gate, each replay


@pytest.mark.parametrize("case", SPLIT_CASES, ids=name_of)
def test_glances_with_the_first_products_outside_the_loop_match_numpy(case):
    follow(loss_fn=split_loss(), **case)


@pytest.mark.parametrize("case", SPLIT_CASES, ids=name_of)
def test_glances_with_all_rows_at_once_match_numpy(monkeypatch, case):
    monkeypatch.setattr(_first_layer, "_in_turn", _first_layer._at_once)
    follow(loss_fn=split_loss(), **case)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_handled_at_once_on_gpus(weighted):
    model = nn.mlp(3, (6, 4), (3, 4, 1))
    gate = GATES["rectified"][0]
    images = jax.random.normal(jax.random.key(1), (5, 3, 4, 1))
    batch, weights = (images, jnp.arange(5) % 3), jnp.arange(1.0, 6.0) if weighted else None
    step = make_step(gate, loss_fn=cross_entropy(model))
    args = start(gate, params=model.init(jax.random.key(0))), batch, batch, None

    def both(state, batch, replay, key):
        (params, mask, *_), metrics = step(state, batch, replay, key, replay_weights=weights)
        return params, mask, metrics

    def exported(*platforms):
        return jax.export.export(jax.jit(both), platforms=platforms)(*args)

    def products(platform):
        return exported(platform).mlir_module().count("dot_general")

    assert products("cuda") != products("cpu")
    jax.tree.map(np.testing.assert_array_equal, exported("cpu", "cuda").call(*args), both(*args))


@pytest.mark.parametrize(
    "options, dtype",
    [
        ({"inner_batch_size": 2}, jnp.float32),
        ({"inner_clip": 0.1}, jnp.float32),
        ({"meta_iterates": "last"}, jnp.float32),
        ({"gradient_sum": "after"}, jnp.float32),
        ({"second_order": True}, jnp.float32),
        ({"meta_loss_fn": classification_loss}, jnp.float32),
        ({}, jnp.bfloat16),
    ],
)
def test_first_products_stay_in_the_loop(options, dtype):
    """If moving them out would not be exact, or not faster."""
    params = jax.tree.map(lambda x: x.astype(dtype), Classifier.init(0))
    gate = GATES["rectified"][0]
    loss_fn = split_loss(not_used, not_used, Classifier.apply)
    step = make_step(gate, loss_fn=loss_fn, **options)
    jax.eval_shape(step, start(gate, params=params), rows(1, ROWS), rows(2, REPLAYED), None)


@pytest.mark.parametrize("hidden", [(), (6, 4)])
def test_networks_give_their_first_products(hidden):
    images = np.random.default_rng(0).integers(256, size=(2, 3, 4, 1)).astype(np.uint8)
    model = nn.mlp(3, hidden, (3, 4, 1))
    stored = nn.normalised(model, (0.1,), (0.3,))
    params = model.init(jax.random.key(0))
    kernel = leaves_by_name(params)[model.input_layer.kernel]
    for network, x in ((model, jnp.asarray(images, jnp.float32)), (stored, jnp.asarray(images))):
        products = network.input_layer.inputs(x) @ kernel
        got = network.input_layer.apply(params, products)
        np.testing.assert_allclose(got, network.apply(params, x), rtol=1e-5, atol=1e-6)
        assert got.shape == (2, 3)
    assert nn.conv4(3, 2, (16, 16, 1)).input_layer is None
    assert nn.strided_cnn(3, 2, 1, (4,), (4, 4, 1)).input_layer is None


def test_glance_by_hand():
    """On (w - x)^2 with steps of 1/4 towards 3 the error halves: 1, 2, 2.5."""

    def loss_fn(w, x):
        return jnp.mean((w - x) ** 2)

    gate, sgd = gates.linear(0.25), optax.sgd(0.01)
    state = start(gate, sgd, params=jnp.array(1.0))
    step = make_step(gate, sgd, loss_fn, clip_norm=None)
    state, metrics = step(state, jnp.array([3.0, 3.0]), jnp.array([5.0]), None)
    # The rows of the meta-loss have the mean 11/3: h = -10/3, -7/3; the sums of g: -4, -6.
    mask = 0.25 + 0.01 * (40 / 3 + 14) / 2
    np.testing.assert_allclose(state.mask, mask, rtol=1e-6)
    np.testing.assert_allclose(state.params, 1 + mask * 17 / 6, rtol=1e-6)
    np.testing.assert_allclose(metrics["inner_loss"], [4, 1], rtol=1e-6)


@pytest.mark.parametrize("iterates", ["all", "last"])
@pytest.mark.parametrize("inner_clip", [None, 0.05])
def test_second_order_matches_pytorchs_double_backward(iterates, inner_clip):
    torch = pytest.importorskip("torch_reference")

    def glance(theta, m, batch, replay, weights, kind, *, sync, iterates, inner_clip, **_):
        theta, m = (torch.leaf_copies(torch.to_torch(tree)) for tree in (theta, m))
        meta = tuple(np.concatenate(pair) for pair in zip(replay, batch, strict=True))
        phi, outer, inner = dict(theta), [], []
        for k in range(ROWS):
            loss = torch.mlp_loss(phi, torch.batch_to_torch(tuple(x[k : k + 1] for x in batch)))
            inner.append(loss.item())
            g = torch.gradient(loss, phi, create_graph=True)
            if inner_clip is not None:
                g = {n: x.clamp(-inner_clip, inner_clip) for n, x in g.items()}
            phi = {n: phi[n] - m[n].clamp(min=0) * g[n] for n in phi}
            outer.append(torch.mlp_loss(phi, torch.batch_to_torch(meta)))
        loss = sum(outer) / ROWS if iterates == "all" else outer[-1]
        loss.backward()
        d_theta, theta_norm = clip({n: x.grad.numpy() for n, x in theta.items()}, 2.0)
        d_m, mask_norm = clip({n: x.grad.numpy() for n, x in m.items()}, 2.0)
        theta, m = ({n: x.detach().numpy() for n, x in tree.items()} for tree in (theta, m))
        m = {n: m[n] - MASK_RATE * d_m[n] for n in m}
        theta = {n: theta[n] - np.maximum(m[n], 0) * d_theta[n] for n in theta}
        norms = {"theta_norm": theta_norm, "mask_norm": mask_norm}
        return theta, m, {"loss": loss.item(), "inner_loss": inner} | norms

    def reference(*args, **options):
        options.pop("second_order")
        return glance(*args, **options)

    follow(
        "rectified",
        reference=reference,
        glances=2,
        second_order=True,
        iterates=iterates,
        inner_clip=inner_clip,
    )


def test_a_separate_meta_loss():
    """Two heads: inner steps use that of the stream's task, each meta row that of its own task."""

    def head_loss(w, batch, task):
        return jnp.mean((jnp.take(w, task) - batch["x"]) ** 2)

    def loss_fn(w, batch):
        return head_loss(w, batch, jnp.ones_like(batch["task"]))

    def meta_loss_fn(w, batch):
        return head_loss(w, batch, batch["task"])

    gate = gates.constant(0.25)
    state = start(gate, None, params=jnp.array([1.0, 1.0]))
    batch = {"x": jnp.array([3.0]), "task": jnp.array([1])}
    replay = {"x": jnp.array([5.0]), "task": jnp.array([0])}
    step = make_step(gate, None, loss_fn, meta_loss_fn=meta_loss_fn, clip_norm=None)
    # w_1 goes to 2; h = ((1 - 5), (2 - 3)) as each head has half of the rows.
    for weights in (None, jnp.ones(1)):
        new, metrics = step(state, batch, replay, None, replay_weights=weights)
        np.testing.assert_allclose(new.params, [1 + 0.25 * 4, 1 + 0.25 * 1])
        np.testing.assert_allclose(metrics["loss"], (16 + 1) / 2)


@pytest.mark.parametrize("loss_fn", [classification_loss, split_loss()], ids=["whole", "split"])
def test_step_sizes_shared_by_a_tensor(loss_fn):
    """A gate with one value per tensor: its derivative is the sum over the tensor."""
    shared = gates.Gate(
        lambda key, params: jax.tree.map(lambda x: jnp.full((), 0.2), params), lambda m, key: m
    )
    full = gates.linear(0.2)
    batch, replay, sgd = rows(1, ROWS), rows(2, REPLAYED), optax.sgd(0.1)
    results = []
    for gate in (shared, full):
        step = make_step(gate, sgd, loss_fn, clip_norm=None, theta_optimizer=THETA_SGD)
        step = quick_jit(step)
        results.append(step(start(gate, sgd, THETA_SGD), batch, replay, jax.random.key(1))[0])
    one, each = results
    assert_trees_close(one.params, each.params)
    assert_trees_close(one.mask, jax.tree.map(lambda x: 0.2 + (x - 0.2).sum(), each.mask))


def test_stochastic_gate_keeps_its_draw_over_the_glance():
    """theta's step sizes come from the new mask, with the draw of the inner loop."""
    gate = gates.Gate(
        lambda key, params: jnp.full((), 0.2),
        lambda m, key: m * jax.random.uniform(key),
        stochastic=True,
    )
    key, params = jax.random.key(1), jnp.array(1.0)
    batch = jnp.array([3.0])

    def loss_fn(w, x):
        return jnp.mean((w - x) ** 2)

    step = make_step(gate, None, loss_fn, clip_norm=None)
    state, _ = step(start(gate, None, params=params), batch, None, key)
    size = 0.2 * jax.random.uniform(jax.random.fold_in(key, 2))
    phi = 1 + size * 4
    np.testing.assert_allclose(state.params, 1 + size * 2 * (3 - phi), rtol=1e-6)
    with pytest.raises(ValueError, match=r"^key is None"):
        generated = gates.generated(ALPHA, embedding=4)
        make_step(generated)(start(generated), rows(1, ROWS), None, None)


# Under JAX's transformations


def test_bfloat16():
    """Steps too small for bfloat16 add up, because fast weights and sums are float32."""
    gate = gates.binary(0.004, slope=0.5, init=RANGE)
    one, replay, key = rows(1, 1), rows(2, REPLAYED), jax.random.key(1)
    batch = jax.tree.map(lambda x: jnp.repeat(x, 64, 0), one)

    def cast(tree, dtype):
        return jax.tree.map(lambda x: x.astype(dtype), tree)

    low = start(gate, params=cast(Classifier.init(0), jnp.bfloat16))
    high = low._replace(**{n: cast(getattr(low, n), jnp.float32) for n in ("params", "mask")})
    step = quick_jit(make_step(gate))
    (new, metrics), (want, want_metrics) = (step(s, batch, replay, key) for s in (low, high))
    assert [x.dtype for x in jax.tree.leaves(new)] == [x.dtype for x in jax.tree.leaves(low)]
    falls = [float(m["inner_loss"][0] - m["inner_loss"][-1]) for m in (metrics, want_metrics)]
    np.testing.assert_allclose(falls[0], falls[1], rtol=0.1)
    for name in ("loss", "theta_norm", "mask_norm"):
        np.testing.assert_allclose(metrics[name], want_metrics[name], rtol=0.03)
    assert_trees_close(cast(new.params, jnp.float32), want.params, 0.02, 0.02)


@pytest.mark.parametrize("form", ["loop", "sums"])
@pytest.mark.parametrize("method", ["sparse-lamaml", "lamaml"])
def test_the_benchmarks_forms_agree(form, method):
    """The contestants of the benchmark do the same arithmetic, on a ReLU network."""
    pytest.importorskip("torch")
    from benchmarks.families import GLANCE

    case = GLANCE.case(
        method, image=(12, 1, 1), hidden=(7, 5), ways=3, inner_steps=4, meta_rows=7, glances=2
    )
    arrays = case.draw()
    ours, peer = (GLANCE.make(name, case, arrays) for name in ("jaxsparse", form))
    for contestant in (ours, peer):
        contestant.step()
    assert_trees_close(ours.result(), peer.result())
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max() > 1e-3, ours.result()["mask"], arrays["mask"]
    )
    assert all(moved.values())


# Errors

BATCH, REPLAY = rows(1, ROWS), rows(2, REPLAYED)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"batch": ()}, ValueError, "^batch must have the same leading row axis.*got no leaves"),
        (
            {"batch": (BATCH[0], BATCH[1][0])},
            ValueError,
            r"^batch must have the same leading.*0: \(6,\), 1: scalar",
        ),
        (
            {"batch": (BATCH[0], BATCH[1][:2])},
            ValueError,
            r"^batch must have the same leading.*\(6,\), 1: \(2,\)",
        ),
        ({"batch": jnp.ones((0, 2))}, ValueError, r"^batch must have the same leading.*\.: \(0,\)"),
        ({"replay": jnp.ones(3)}, ValueError, "^replay must have the tree of batch: got"),
        (
            {"replay": (REPLAY[0][:, :3], REPLAY[1])},
            ValueError,
            r"^replay\[0\] has rows of shape \(3,\), float32; batch has \(5,\), float32",
        ),
        (
            {"replay": (REPLAY[0], REPLAY[1].astype(jnp.float32))},
            ValueError,
            r"^replay\[1\] has rows of shape \(\), float32; batch has \(\), int32",
        ),
        (
            {"replay": (REPLAY[0][:2], REPLAY[1])},
            ValueError,
            "^replay must have the same leading row axis",
        ),
        (
            {"replay_weights": jnp.ones(3)},
            ValueError,
            r"^replay_weights has shape \(3,\), want one per row, \(4,\)",
        ),
        (
            {"replay": None, "replay_weights": jnp.ones(3)},
            ValueError,
            "^replay_weights: got weights, want None: replay is None",
        ),
        (
            {"replay_weights": jnp.ones(4, jnp.int32)},
            TypeError,
            "^replay_weights must be floating, got int32",
        ),
        ({"inner_batch_size": 4}, ValueError, "^inner_batch_size must divide the 6 rows.*got 4"),
        ({"inner_batch_size": 0}, ValueError, "^inner_batch_size must divide the 6 rows.*got 0"),
        ({"inner_batch_size": 1.0}, TypeError, "^inner_batch_size must be a Python int"),
        ({"meta_iterates": "first"}, ValueError, "^meta_iterates must be 'all' or.*got 'first'"),
        ({"gradient_sum": "at"}, ValueError, "^gradient_sum must be 'before' or.*got 'at'"),
        (
            {"gradient_sum": "after", "second_order": True},
            ValueError,
            "^gradient_sum must be 'before' with second_order, got 'after'",
        ),
        (
            {"loss_fn": NORMED, "replay_weights": jnp.ones(4)},
            ValueError,
            "^replay_weights: got weights, want None: the loss uses statistics over its rows",
        ),
        (
            {"meta_loss_fn": NORMED, "replay_weights": jnp.ones(4)},
            ValueError,
            "^replay_weights: got weights, want None",
        ),
        ({"clip_norm": 0.0}, ValueError, "^clip_norm must be positive or None, got 0.0"),
        ({"inner_clip": -1.0}, ValueError, "^inner_clip must be positive or None, got -1.0"),
        (
            {"loss_fn": lambda w, batch: (0.0, {"order": 0.0})},
            ValueError,
            "^loss_fn: no metric may be called 'order'",
        ),
        ({"loss_fn": lambda w, batch: batch[0]}, ValueError, "^loss_fn must return a scalar"),
        (
            {"gate": gates.Gate(lambda key, p: p, lambda m, key: m["head"])},
            ValueError,
            "^step_sizes must have the tree of params",
        ),
    ],
)
def test_errors_name_the_argument(change, error, message):
    given = {"batch": BATCH, "replay": REPLAY} | change
    positional = [given.pop(name) for name in ("batch", "replay")]
    options = {"gate": gates.linear(0.1)} | given
    with pytest.raises(error, match=message):
        make_step(**options)(start(gates.linear(0.1)), *positional, None)


def test_integer_params_are_refused():
    with pytest.raises(TypeError, match=r"^params\[n\] must be floating, got int32"):
        start(gates.linear(0.1), params={"n": jnp.arange(3)})
    state = LaMAMLState({"n": jnp.arange(3)}, {"n": jnp.ones(3)}, (), (), jnp.zeros((), jnp.int32))
    with pytest.raises(TypeError, match=r"^state.params\[n\] must be floating, got int32"):
        make_step(gates.linear(0.1), None)(state, BATCH, None, None)
