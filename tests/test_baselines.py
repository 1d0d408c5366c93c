"""Experience replay, MER, GEM and A-GEM against NumPy, and under JAX's transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quadprog
from problems import (
    WAYS,
    Classifier,
    assert_trees_close,
    classification_loss,
    clip,
    float64,
    loss_and_gradient,
    quick_jit,
    rows,
    split_loss,
    to_numpy,
)

from jaxsparse import cross_entropy, nn
from jaxsparse.clipping import clip_by_norm
from jaxsparse.continual import task_gradients as task_gradients_module
from jaxsparse.continual.bgd import bgd, bgd_step, gaussian
from jaxsparse.continual.er import er_step, init_online_state
from jaxsparse.continual.gem import agem_step, gem_step
from jaxsparse.continual.mer import mer_step
from jaxsparse.continual.online import (
    frozen_maml_step,
    init_frozen_state,
    init_metabgd_state,
    metabgd_step,
    self_masked_loss,
)
from jaxsparse.continual.task_gradients import Factors, task_gradients

ROWS, REPLAYED, STEPS = 3, 4, 4
RATE, MOMENTUM = 0.3, 0.9
SGD = optax.sgd(RATE, momentum=MOMENTUM)
ALPHA, BETA, GAMMA, BATCHES = 0.4, 0.3, 0.7, 2
CLIP = 0.2  # below the norm of every gradient here

er, agem, gem = (
    functools.partial(step, loss_fn=classification_loss, optimizer=SGD)
    for step in (er_step, agem_step, gem_step)
)
mer = functools.partial(
    mer_step,
    loss_fn=classification_loss,
    learning_rate=ALPHA,
    within_batch_rate=BETA,
    across_batch_rate=GAMMA,
)


def start(seed=0, optimizer=SGD):
    return init_online_state(Classifier.init(seed), optimizer)


def squares(w, x):
    """The mean of half the squared distances to the rows: its gradient is w - mean(x)."""
    return 0.5 * jnp.mean(jnp.sum((w[None] - x) ** 2, axis=1))


def joined(first, second):
    return tuple(np.concatenate(pair) for pair in zip(first, second, strict=True))


def to_vector(tree):
    return np.concatenate([x.ravel() for x in tree.values()])


def gradient_of(theta, batch, weights=None, bound=None):
    """The loss, its clipped gradient, and the norm before clipping."""
    weights = np.ones(len(batch[1])) if weights is None else weights
    loss, gradient = loss_and_gradient(theta, batch, weights)
    gradient = {name: gradient[name] for name in theta}
    return loss, *clip(gradient, bound)


class NumpySGD:
    """Momentum, in float64, on a flat dict."""

    def __init__(self, params):
        self.params, self.trace = float64(params), 0.0

    def step(self, gradient):
        if isinstance(gradient, dict):
            gradient = to_vector(gradient)
        self.trace = gradient + MOMENTUM * self.trace
        theta = to_vector(self.params) - RATE * self.trace
        ends = np.cumsum([x.size for x in self.params.values()])[:-1]
        parts = zip(self.params.items(), np.split(theta, ends), strict=True)
        self.params = {name: new.reshape(old.shape) for (name, old), new in parts}


def assert_step(state, metrics, theta, wanted, rtol=1e-4):
    assert_trees_close(float64(state.params), theta, rtol, 1e-5)
    assert metrics.keys() == wanted.keys() | {"accuracy"}
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=rtol, atol=1e-5, err_msg=name)


# Experience replay


@pytest.mark.parametrize(
    ("replay", "clip_norm"),
    [("full", None), ("none", CLIP), ("weighted", CLIP), ("weighted", None), ("empty", None)],
)
def test_experience_replay_matches_numpy(replay, clip_norm):
    given = {"weighted": np.array([2.0, 1.0, 0.0, 0.0]), "empty": np.zeros(REPLAYED)}.get(replay)
    state, reference = start(), NumpySGD(Classifier.init(0))
    step = quick_jit(functools.partial(er, clip_norm=clip_norm))
    for i in range(STEPS):
        batch, drawn = rows(i, ROWS), rows(10 + i, REPLAYED)
        weights = None if given is None else jnp.asarray(given, jnp.float32)
        kept = None if replay == "none" else drawn
        state, metrics = step(state, batch, kept, replay_weights=weights)
        used, shares = to_numpy(batch), np.ones(ROWS)
        if replay != "none":
            used = joined(to_numpy(drawn), used)
            own = np.ones(REPLAYED) if given is None else given
            shares = np.concatenate([own, shares])
        loss, gradient, norm = gradient_of(reference.params, used, shares, clip_norm)
        assert clip_norm is None or norm > clip_norm
        reference.step(gradient)
        assert_step(state, metrics, reference.params, {"loss": loss, "gradient_norm": norm})
    assert state.step == STEPS


def test_experience_replay_by_hand():
    """From 0, half way to the mean of 3 and 6. With weight 2 for the 6, the mean is 5."""
    half = optax.sgd(0.5)
    state = init_online_state(jnp.zeros(1), half)
    batch, replay = jnp.full((1, 1), 3.0), jnp.full((1, 1), 6.0)
    step = functools.partial(er_step, loss_fn=squares, optimizer=half)
    np.testing.assert_allclose(step(state, batch, replay)[0].params, [2.25])
    weighted, metrics = step(state, batch, replay, replay_weights=jnp.full(1, 2.0))
    np.testing.assert_allclose(weighted.params, [2.5])
    np.testing.assert_allclose(metrics["gradient_norm"], 5)


# MER


def numpy_mer(theta, example, replay, weights, bound):
    """Riemer et al., Algorithm 1: a step per row, then both Reptile updates."""
    loss, _ = loss_and_gradient(theta, example, np.ones(1))
    current = theta
    batches, replayed = weights.shape
    for i in range(batches):
        w = current
        for row, weight in [
            (example, 1.0),
            *((tuple(x[i, j : j + 1] for x in replay), weights[i, j]) for j in range(replayed)),
        ]:
            _, g, _ = gradient_of(w, row, bound=bound)
            w = {n: w[n] - ALPHA * weight * g[n] for n in w}
        current = {n: current[n] + BETA * (w[n] - current[n]) for n in w}
    return loss, {n: theta[n] + GAMMA * (current[n] - theta[n]) for n in theta}


@pytest.mark.parametrize(
    ("filled", "clip_norm"), [(None, CLIP), (0, None), (3, CLIP), (REPLAYED, None)]
)
def test_mer_matches_numpy(filled, clip_norm):
    follow_mer(classification_loss, REPLAYED, filled, clip_norm)


@pytest.mark.parametrize(("filled", "clip_norm"), [(None, CLIP), (0, None), (1, CLIP), (2, None)])
def test_factored_mer_matches_numpy(filled, clip_norm):
    """With few rows, the first kernel's gradients and the whole loss are not computed."""
    follow_mer(split_loss(), 2, filled, clip_norm)


def follow_mer(loss_fn, replayed, filled, clip_norm):
    """Compare with NumPy; `filled` of the replayed rows count, None: all, without weights."""
    state, theta = start(optimizer=None), float64(Classifier.init(0))
    step = quick_jit(functools.partial(mer, loss_fn=loss_fn, clip_norm=clip_norm))
    for i in range(STEPS):
        example, replay = rows(i, 1), rows(10 + i, BATCHES, replayed)
        weights = np.ones((BATCHES, replayed))
        if filled is not None:
            weights *= np.arange(replayed) < filled
        given = None if filled is None else jnp.asarray(weights, jnp.float32)
        state, metrics = step(state, example, replay, given)
        loss, theta = numpy_mer(theta, to_numpy(example), to_numpy(replay), weights, clip_norm)
        assert_step(state, metrics, theta, {"loss": loss})
    assert state.step == STEPS and state.opt_state == ()


def test_mer_is_not_factored_for_many_rows_or_bfloat16():
    example, replay = rows(1, 1), rows(2, BATCHES, REPLAYED)
    with pytest.raises(AssertionError, match="not to be used"):
        mer(start(optimizer=None), example, replay, loss_fn=split_loss())
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), start(optimizer=None))
    with pytest.raises(AssertionError, match="not to be used"):
        mer(halves, example, rows(2, BATCHES, 2), loss_fn=split_loss())


def test_mer_with_a_blank_row_does_not_divide_by_zero():
    """Its kernel gradient has norm 0."""
    example, replay = rows(1, 1), jax.tree.map(jnp.zeros_like, rows(2, BATCHES, 2))
    step = quick_jit(functools.partial(mer, loss_fn=split_loss(), clip_norm=CLIP))
    state, _ = step(start(optimizer=None), example, replay)
    _, theta = numpy_mer(
        float64(Classifier.init(0)),
        to_numpy(example),
        to_numpy(replay),
        np.ones((BATCHES, 2)),
        CLIP,
    )
    assert_trees_close(float64(state.params), theta, 1e-4, 1e-5)


def test_mer_by_hand():
    """Each step halves the distance to the row; Reptile within a batch goes a quarter of the way.

    First batch: 0 -> 4 (row 8) -> 2 (row 0), a quarter of it is 1/2. Second batch: 1/2 -> 17/4
    -> 17/8, and 1/2 + (17/8 - 1/2) / 4 = 29/32. Half of it across batches: 29/64.
    """
    state = init_online_state(jnp.zeros(1))
    state, _ = mer_step(
        state,
        jnp.full((1, 1), 8.0),
        jnp.zeros((2, 1, 1)),
        loss_fn=squares,
        learning_rate=0.5,
        within_batch_rate=0.25,
        across_batch_rate=0.5,
    )
    np.testing.assert_allclose(state.params, [29 / 64], rtol=1e-6)


def test_rows_of_weight_zero_do_not_affect_mer():
    state, example = start(optimizer=None), rows(1, 1)
    weights = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    one, other = rows(2, 2, 2), rows(3, 2, 2)
    kept = jax.tree.map(lambda x, y: x.at[0, 0].set(y[0, 0]), other, one)
    step = quick_jit(mer)
    got, want = (step(state, example, replay, weights)[0].params for replay in (one, kept))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_mer_accumulates_small_bfloat16_steps():
    """Single steps are far below bfloat16's resolution; their sum is not."""
    high = init_online_state(jnp.ones((2,), jnp.float32))
    low = high._replace(params=high.params.astype(jnp.bfloat16))
    rates = {"learning_rate": 1e-3, "within_batch_rate": 0.5, "across_batch_rate": 1.0}
    step = quick_jit(functools.partial(mer_step, loss_fn=squares, **rates))
    new, want = (
        step(s, jnp.full((1, 2), 4.0, d), jnp.full((5, 9, 2), 4.0, d))[0].params
        for s, d in ((low, jnp.bfloat16), (high, jnp.float32))
    )
    assert new.dtype == jnp.bfloat16
    np.testing.assert_allclose(new.astype(jnp.float32), want, atol=0.01)
    assert np.all(want > 1.05)


# GEM and A-GEM


def numpy_gem(theta, batch, memory, observed, margin, bound, ridge):
    """Lopez-Paz & Ranzato, Eqs. 8-11, in float64 and with quadprog."""
    loss, gradient, norm = gradient_of(theta, batch, bound=bound)
    g, v = to_vector(gradient), np.zeros(0)
    tasks = [tuple(x[t] for x in memory) for t in range(observed)]
    M = np.array([to_vector(gradient_of(theta, task, bound=bound)[1]) for task in tasks])
    violations = 0 if observed == 0 else int(np.sum(M @ g < 0))
    if violations:
        P = M @ M.T + ridge * np.eye(observed)
        v = quadprog.solve_qp(P, -M @ g, np.eye(observed), np.full(observed, margin))[0]
        g = g + M.T @ v
    return (
        g,
        np.sum(v > margin + 1e-6),
        {
            "loss": loss,
            "gradient_norm": norm,
            "violations": violations,
        },
    )


# (tasks, rows kept of each, tasks observed at each step, margin, ridge, clip_norm); more than ten
# tasks need more than one block of the Gram matrix.
GEM_CASES = {
    "none_observed": (3, 4, (0, 0), 0.5, 1e-3, None),
    "published": (3, 4, (0, 1, 2, 3), 0.5, 1e-3, None),
    "clipped": (3, 4, (1, 2, 3), 0.5, 1e-3, CLIP),
    "no_margin": (4, 2, (1, 2, 3, 4), 0.0, 1e-3, None),
    "blocks": (23, 3, (7, 10, 11, 23), 0.1, 1e-3, CLIP),
    "ridge": (6, 3, (4, 6, 5), 0.0, 0.5, CLIP),
}


@pytest.mark.parametrize("case", GEM_CASES)
def test_gem_matches_numpy(case):
    follow_gem(classification_loss, *GEM_CASES[case])


@pytest.mark.parametrize("case", GEM_CASES)
def test_factored_gem_matches_numpy(case):
    """With two rows per task, the first layer's gradients are not computed."""
    tasks, _, *others = GEM_CASES[case]
    loss_fn = split_loss(whole=Classifier.apply)
    memory = rows(10, tasks, 2)
    parts = task_gradients(loss_fn, Classifier.init(0), memory, tasks)
    assert any(isinstance(part, Factors) for part in parts)
    follow_gem(loss_fn, tasks, 2, *others)


@pytest.mark.parametrize("case", ["published", "clipped"])
def test_gem_on_pieces_of_a_memory_matches_numpy(case, monkeypatch):
    """Seven rows per task, in pieces of three, three and one."""
    taken = set()

    def loss_fn(params, batch):
        taken.add(len(batch[1]))
        return classification_loss(params, batch)

    monkeypatch.setattr(task_gradients_module, "_piece", lambda *_: 3)
    tasks, _, *others = GEM_CASES[case]
    follow_gem(loss_fn, tasks, 7, *others)
    assert taken == {ROWS, 3, 1}


def test_pieces_in_bfloat16_add_up(monkeypatch):
    """A thousand shares of the gradient w - x = 1: their sum in bfloat16 would be too small."""
    monkeypatch.setattr(task_gradients_module, "_piece", lambda *_: 1)
    memory = jnp.full((1, 1000, 2), -1.0, jnp.bfloat16)
    (made,) = task_gradients(squares, jnp.zeros(2, jnp.bfloat16), memory, 1)
    np.testing.assert_allclose(made, [[1.0, 1.0]], atol=0.01)


def test_pieces_of_images_fit_into_the_cache():
    """The backward pass of a convolutional network keeps about 17 kB per image (patches and
    outputs): for 200 images more than 1 MiB, and less than 1 GiB."""
    images, labels = jnp.zeros((2, 200, 16, 16, 3)), jnp.zeros((2, 200), jnp.int32)

    def taken(model, cache_bytes):
        sizes = set()

        def loss_fn(params, rows):
            sizes.add(len(rows[1]))
            return cross_entropy(model)(params, rows)

        loss_fn.rowwise = True
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task_gradients_module, "CACHE_BYTES", cache_bytes)
            params = model.init(jax.random.key(0))
            jax.eval_shape(lambda p: task_gradients(loss_fn, p, (images, labels), 2), params)
        return max(sizes)

    cnn = nn.strided_cnn(10, channels=8, layers=2, hidden=(16,), image_shape=(16, 16, 3))
    mlp = nn.mlp(10, image_shape=(16, 16, 3))
    assert taken(cnn, 2**30) == taken(mlp, 2**22) == 200
    assert 20 <= taken(cnn, 2**20) <= 70
    assert taken(cnn, 0) <= 2


def test_gem_with_batch_norm_uses_a_whole_memory(monkeypatch):
    """Even with a tiny cache: batch norm has other statistics on a piece."""
    monkeypatch.setattr(task_gradients_module, "CACHE_BYTES", 0)
    model = nn.conv4(WAYS, width=2, image_shape=(16, 16, 1))
    loss_fn, params = cross_entropy(model), model.init(jax.random.key(0))
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(2, 6, 16, 16, 1)), jnp.float32)
    labels = jnp.asarray(random.integers(WAYS, size=(2, 6)))
    made = quick_jit(lambda p: task_gradients(loss_fn, p, (images, labels), 2))(params)
    whole = quick_jit(jax.grad(lambda p, task: loss_fn(p, (images[task], labels[task]))[0]))
    for task in range(2):
        for got, want in zip(made, jax.tree.leaves(whole(params, task)), strict=True):
            np.testing.assert_allclose(got[task], want.ravel(), rtol=1e-4, atol=1e-5)


def test_nan_gradients_of_a_memory_are_not_ignored():
    inputs, labels = rows(3, 1, 4)
    memory = inputs.at[0, 2].set(jnp.nan), labels
    state, metrics = gem(start(), rows(1, ROWS), memory, 1)
    assert metrics["violations"] == 1
    assert all(jnp.isnan(x).any() for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("odd", [jnp.nan, jnp.inf, 1e30])
def test_clipping_keeps_nan_and_infinity(odd):
    tree = {"a": jnp.array([odd, 1.0]), "b": jnp.array([0.5])}
    clipped, norm = clip_by_norm(tree, 2.0)
    assert not jnp.isfinite(norm)
    assert all(jnp.isnan(x).all() for x in jax.tree.leaves(clipped))


def follow_gem(loss_fn, tasks, kept, counts, margin, ridge, clip_norm):
    """Compare with NumPy; `counts` are the tasks observed before each step."""
    state, reference = start(), NumpySGD(Classifier.init(0))
    options = {"margin": margin, "clip_norm": clip_norm, "ridge": ridge, "loss_fn": loss_fn}
    step = quick_jit(functools.partial(gem, **options))
    free, violations = 0, []
    for i, observed in enumerate(counts):
        batch, (inputs, labels) = rows(i, ROWS), rows(10 + i, tasks, kept)
        # The memory of future tasks must not matter, whatever it contains.
        inputs = jnp.where(jnp.arange(tasks)[:, None, None] < observed, inputs, jnp.nan)
        memory = inputs, labels
        state, metrics = step(state, batch, memory, jnp.int32(observed))
        g, more, wanted = numpy_gem(
            reference.params, to_numpy(batch), to_numpy(memory), observed, margin, clip_norm, ridge
        )
        free += more
        reference.step(g)
        assert_step(state, metrics, reference.params, wanted, rtol=1e-3)
        assert metrics["violations"].dtype == jnp.int32
        violations.append(int(metrics["violations"]))
    if not any(counts):
        assert not any(violations)
    else:
        assert free or margin > 0.1  # some v was above a bound that is not wide
        assert any(violations)


def test_gem_by_hand():
    """g = (-1, 0). The task at (0, -1) agrees with it, the task at (-2, 1) does not.

    The second alone: M = (2, -1), v = 2 / 5, and g + M' v = (-1/5, -2/5), orthogonal to M.
    """
    one = optax.sgd(1.0)
    state = init_online_state(jnp.zeros(2), one)
    batch = jnp.array([[1.0, 0.0]])
    step = functools.partial(gem_step, loss_fn=squares, optimizer=one, margin=0.0, ridge=0.0)
    free, metrics = step(state, batch, jnp.array([[[0.0, -1.0]], [[-2.0, 1.0]]]), 1)
    np.testing.assert_allclose(free.params, [1, 0])
    assert metrics["violations"] == 0
    held, metrics = step(state, batch, jnp.array([[[-2.0, 1.0]], [[0.0, -1.0]]]), 1)
    np.testing.assert_allclose(held.params, [1 / 5, 2 / 5], rtol=1e-5)
    assert metrics["violations"] == 1


def test_gem_accepts_losses_with_a_custom_backward_pass():
    """Such a loss has no forward-mode derivative, so none may be used."""

    @jax.custom_vjp
    def distance(w, x):
        return squares(w, x)

    distance.defvjp(
        lambda w, x: (squares(w, x), (w, x)),
        lambda kept, c: (c * (kept[0] - jnp.mean(kept[1], 0)), jnp.zeros_like(kept[1])),
    )
    state = init_online_state(jnp.zeros(2), SGD)
    batch, memory = jnp.array([[1.0, 0.0]]), jnp.array([[[-2.0, 1.0]]])
    got, want = (
        quick_jit(functools.partial(gem_step, loss_fn=f, optimizer=SGD))(state, batch, memory, 1)
        for f in (distance, squares)
    )
    assert got[1]["violations"] == 1
    assert_trees_close(got, want)


@pytest.mark.parametrize(
    ("remembered", "clip_norm"), [(None, None), ("all", CLIP), ("weighted", None), ("empty", CLIP)]
)
def test_agem_matches_numpy(remembered, clip_norm):
    """Chaudhry et al. 2019b, Eq. 11."""
    given = {
        None: None,
        "all": np.ones(REPLAYED),
        "weighted": np.array([2.0, 0.0, 1.0, 0.0]),
        "empty": np.zeros(REPLAYED),
    }[remembered]
    state, reference = start(), NumpySGD(Classifier.init(0))
    step = quick_jit(functools.partial(agem, clip_norm=clip_norm))
    opposed = []
    for i in range(2 * STEPS):
        batch, drawn = rows(i, ROWS), rows(30 + i, REPLAYED)
        weights = None if given is None else jnp.asarray(given, jnp.float32)
        state, metrics = step(state, batch, drawn, weights)
        loss, gradient, norm = gradient_of(reference.params, to_numpy(batch), bound=clip_norm)
        g, opposes = to_vector(gradient), False
        if remembered != "empty":
            _, mean, _ = gradient_of(reference.params, to_numpy(drawn), given)
            h = to_vector(mean)
            opposes = bool(g @ h < 0)
            if opposes:
                g = g - (g @ h) / (h @ h) * h
        reference.step(g)
        wanted = {"loss": loss, "gradient_norm": norm, "violations": opposes}
        assert_step(state, metrics, reference.params, wanted)
        opposed.append(opposes)
    assert set(opposed) == ({False} if remembered == "empty" else {False, True})


# Under JAX's transformations


def test_init_leaves_the_callers_arrays_alone():
    params = {"w": jnp.ones(3)}
    state = init_online_state(params, SGD)
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s.params), donate_argnums=0)(state)
    np.testing.assert_array_equal(params["w"], np.ones(3))
    with pytest.raises(TypeError, match=r"^params.* must be floating, got int32"):
        init_online_state({"w": jnp.ones(3, int)}, SGD)


# Errors

NORMED = cross_entropy(nn.resnet12(WAYS, (2, 2, 2, 2), (16, 16, 1)))
BATCH, REPLAY, MEMORY = rows(1, ROWS), rows(2, REPLAYED), rows(3, 2, 4)
ONE, DRAWN = rows(1, 1), rows(2, BATCHES, REPLAYED)


@pytest.mark.parametrize(
    ("step", "arguments", "options", "error", "message"),
    [
        (er, ((), None), {}, ValueError, "^batch must have the same leading row axis.*no leaves"),
        (er, ((BATCH[0], BATCH[1][:2]), None), {}, ValueError, r"^batch must.*0: \(3,\), 1: \(2"),
        (er, (BATCH, REPLAY[0]), {}, ValueError, "^replay must have the tree of batch"),
        (
            er,
            (BATCH, (REPLAY[0], REPLAY[1].astype(jnp.float32))),
            {},
            ValueError,
            r"^replay\[1\] has rows of shape \(\), float32; batch has \(\), int32",
        ),
        (
            er,
            (BATCH, REPLAY),
            {"replay_weights": jnp.ones(3)},
            ValueError,
            r"^replay_weights has shape \(3,\), want one per row, \(4,\)",
        ),
        (
            er,
            (BATCH, REPLAY),
            {"replay_weights": jnp.ones(4, int)},
            TypeError,
            "^replay_weights must be floating, got int32",
        ),
        (
            er,
            (BATCH, None),
            {"replay_weights": jnp.ones(4)},
            ValueError,
            "^replay_weights: got weights, want None: replay is None",
        ),
        (er, (BATCH, REPLAY), {"clip_norm": 0.0}, ValueError, "^clip_norm must be positive"),
        (mer, (BATCH, DRAWN), {}, ValueError, "^example must be one row, got 3"),
        (mer, (ONE, REPLAY), {}, ValueError, "^replay must have the same 2 leading axes"),
        (mer, (ONE, DRAWN, jnp.ones(4)), {}, ValueError, r"^replay_weights .* \(2, 4\)"),
        (gem, (BATCH, REPLAY, 1), {}, ValueError, "^memory must have the same 2 leading axes"),
        (gem, (BATCH, MEMORY, 1.0), {}, TypeError, "^observed must be one integer.*got float32"),
        (gem, (BATCH, MEMORY, jnp.ones(2, bool)), {}, TypeError, r"^observed .*got bool \(2,\)"),
        (agem, (BATCH, MEMORY), {}, ValueError, r"^memory_rows\[0\] has rows of shape \(4, 5\)"),
        (agem, (BATCH, REPLAY, jnp.ones(2)), {}, ValueError, r"^memory_weights has shape \(2,\)"),
        (
            er,
            (BATCH, REPLAY),
            {"replay_weights": jnp.ones(4), "loss_fn": NORMED},
            ValueError,
            "^replay_weights: got weights, want None: the loss uses statistics over its rows",
        ),
        (
            agem,
            (BATCH, REPLAY, jnp.ones(4)),
            {"loss_fn": NORMED},
            ValueError,
            "^memory_weights: got weights, want None",
        ),
        (
            er,
            (BATCH, None),
            {"loss_fn": lambda p, b: (0.0 * p["head"]["b"].sum(), {"gradient_norm": 1.0})},
            ValueError,
            "^loss_fn: no metric may be called 'gradient_norm'",
        ),
    ],
)
def test_errors(step, arguments, options, error, message):
    optimizer = None if step is mer else SGD
    with pytest.raises(error, match=message):
        step(start(optimizer=optimizer), *arguments, **options)


@pytest.mark.parametrize("batch_norm", ["support", "running"])
def test_a_loss_with_support_sets_is_refused_on_streams(batch_norm):
    model = nn.conv4(WAYS, 2, (16, 16, 1), blocks="xla")
    loss_fn, key = cross_entropy(model, batch_norm), jax.random.key(0)
    params = model.init(key)
    batch = jnp.zeros((1, 16, 16, 1)), jnp.zeros(1, jnp.int32)
    two = jax.tree.map(lambda x: x[None], batch)
    plain, belief = init_online_state(params, SGD), init_online_state(gaussian(params), bgd())
    rates = {"within_batch_rate": 1.0, "across_batch_rate": 1.0, "learning_rate": 1.0}
    inner = {"step_sizes": jax.tree.map(lambda x: jnp.float32(0.1), params), "inner_steps": 1}
    for step in (
        lambda: er_step(plain, batch, batch, loss_fn=loss_fn, optimizer=SGD),
        lambda: agem_step(plain, batch, batch, None, loss_fn=loss_fn, optimizer=SGD),
        lambda: gem_step(plain, batch, two, 1, loss_fn=loss_fn, optimizer=SGD),
        lambda: mer_step(plain, batch, two, loss_fn=loss_fn, **rates),
        lambda: bgd_step(belief, batch, key, loss_fn=loss_fn, optimizer=bgd()),
        lambda: frozen_maml_step(init_frozen_state(params), batch, loss_fn=loss_fn, **inner),
        lambda: metabgd_step(
            init_metabgd_state(gaussian(params), bgd()),
            *(batch, key),
            loss_fn=loss_fn,
            optimizer=bgd(),
            **inner,
        ),
        lambda: self_masked_loss(loss_fn, lambda name: True),
    ):
        with pytest.raises(ValueError, match="on a stream, which has no support sets; got"):
            step()
