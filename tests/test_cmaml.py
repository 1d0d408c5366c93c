"""One timestep of C-MAML against PyTorch, by hand, and under JAX's transformations."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import quick_jit

from jaxsparse import gates
from jaxsparse._tree import combine, partition, restrict
from jaxsparse.cmaml import cmaml_step, init_cmaml_state

ROWS, WAYS, STEPS, CAPACITY, TIMESTEPS = 8, 3, 3, 3, 14
ALPHA, THETA_RATE, MASK_RATE, THRESHOLD, LAMBDA = 0.3, 0.05, 0.02, 0.7, 0.7
ADAM, MASK_ADAM = optax.adam(THETA_RATE), optax.adam(MASK_RATE)
RANGE = (-0.05, 0.4)


def inner_params(name):
    return not name.startswith("norm")


def init(seed=0):
    draw = np.random.default_rng(seed).normal
    tree = {
        "dense": {"kernel": draw(size=(5, 6))},
        "norm": {"scale": np.ones(6), "bias": np.zeros(6)},
        "head": {"kernel": draw(size=(6, WAYS)), "bias": np.zeros(WAYS)},
    }
    return jax.tree.map(jnp.asarray, tree)  # float64 under enable_x64, else float32


def loss_fn(params, batch):
    """A classifier with batch norm, whose gain and shift the inner loop only reads."""
    inputs, labels = batch
    x = inputs @ params["dense"]["kernel"]
    x = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
    x = jnp.tanh(x * params["norm"]["scale"][None] + params["norm"]["bias"][None])
    logits = x @ params["head"]["kernel"] + params["head"]["bias"][None]
    picked = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
    return -picked.mean(), {"accuracy": (logits.argmax(1) == labels).mean()}


def stream(timesteps=TIMESTEPS, seed=0):
    """Batches whose labelling switches, once after a single batch of a task."""
    rng = np.random.default_rng(seed)
    rule = rng.normal(size=(5, WAYS))
    inputs = rng.normal(size=(timesteps, ROWS, 5))
    shift = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0, 1])[:timesteps]
    labels = ((inputs @ rule).argmax(-1) + shift[:, None]) % WAYS
    return inputs.astype(np.float32), labels.astype(np.int32)


BATCHES = stream()
per_tensor = gates.Gate(
    lambda key, params: jax.tree.map(lambda x: jnp.full((), 0.2), params), lambda m, key: m
)
GATES = {
    "binary": gates.binary(ALPHA, init=RANGE),
    "relu": gates.relu(RANGE),
    "constant": gates.constant(ALPHA),
    "per_tensor": per_tensor,
}


def start(gate, mask_optimizer=MASK_ADAM, params=None, batches=BATCHES, **options):
    given = {"theta_optimizer": ADAM, "capacity": CAPACITY, "inner_params": inner_params}
    return init_cmaml_state(
        init() if params is None else params,
        gate,
        jax.random.key(5),
        batch=jax.tree.map(lambda x: x[0], batches),
        mask_optimizer=mask_optimizer,
        **given | options,
    )


def make_step(gate, mask_optimizer=MASK_ADAM, **options):
    given = {"loss_fn": loss_fn, "theta_optimizer": ADAM, "inner_steps": STEPS}
    given |= {"detection_threshold": THRESHOLD, "modulation": LAMBDA}
    return functools.partial(
        cmaml_step, gate=gate, mask_optimizer=mask_optimizer, **given | options
    )


def assert_trees_close(got, want, rtol=1e-8, atol=1e-10):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol, strict=False), got, want
    )


def assert_trees_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


# Against PyTorch


class TorchLearner:
    """The timestep in the order of the public code, with batches in a list, in float64."""

    def __init__(self, state, kind, mask_theta, restart_now, modulation):
        self.lib = pytest.importorskip("torch_reference")
        self.theta = self.lib.leaf_copies(self.lib.to_torch(state.params))
        self.phi = {n: x.detach() for n, x in self.theta.items() if inner_params(n)}
        self.m = self.lib.leaf_copies(self.lib.to_torch(state.mask))
        adam = self.lib.torch.optim.Adam
        self.theta_opt = adam(self.theta.values(), lr=THETA_RATE)
        self.mask_opt = adam(self.m.values(), lr=MASK_RATE)
        self.kind, self.mask_theta, self.restart_now = kind, mask_theta, restart_now
        self.modulation = modulation
        self.stored, self.reset, self.t, self.branches = [], False, 0, []

    def loss(self, part, batch):
        """The loss of `part` of the weights; the rest is the present theta."""
        torch, w = self.lib.torch, self.theta | part
        x = batch[0] @ w["dense/kernel"]
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        x = torch.tanh(x * w["norm/scale"] + w["norm/bias"])
        logits = x @ w["head/kernel"] + w["head/bias"]
        return torch.nn.functional.cross_entropy(logits, batch[1])

    def sizes(self):
        m = {n: x.detach() for n, x in self.m.items()}
        if self.kind == "binary":
            return {n: ALPHA * (x >= 0).double() for n, x in m.items()}
        return {n: x.clamp(min=0) if self.kind == "relu" else x for n, x in m.items()}

    def adapt(self, part, batch):
        return self.lib.adapt(
            self.loss, {n: part[n] for n in self.phi}, self.sizes(), batch, STEPS
        )[:2]

    def outer_update(self):
        n = len(self.stored)
        half = -(-n // 2)
        pairs = list(zip(self.stored[:half], self.stored[half:], strict=False))
        pairs = pairs if n > 1 else [(self.stored[0],) * 2]
        mean = 0.0
        d_theta: dict[str, Any] = {}
        d_size: dict[str, Any] = {}
        for support, query in pairs:
            phi, total = self.adapt(self.theta, support)
            phi = self.lib.leaf_copies(phi)
            loss = self.loss(phi, query)
            leaves = self.theta | phi
            for name, q in self.lib.gradient(loss, leaves).items():
                d_theta[name] = d_theta.get(name, 0) + q / len(pairs)
                if name in phi:
                    d_size[name] = d_size.get(name, 0) - q * total[name] / len(pairs)
            mean += loss.item() / len(pairs)
        omega = 1 - np.exp(-self.modulation * mean) if self.modulation else 1.0
        for name, x in self.theta.items():
            masked = self.mask_theta and name in self.phi
            x.grad = omega * d_theta[name] * (self.sizes()[name] if masked else 1.0)
        for name, m in self.m.items():
            d = omega * d_size[name]
            m.grad = {"binary": ALPHA * d, "relu": d, "per_tensor": d.sum(), "constant": 0 * d}[
                self.kind
            ]
        self.theta_opt.step()
        self.mask_opt.step()
        self.stored = []
        return {"outer_loss": mean, "modulation": omega}

    def step(self, batch):
        batch = self.lib.batch_to_torch(batch)
        before = self.loss(self.phi, batch).item()
        restarted = self.reset or self.t == 0
        self.phi, _ = self.adapt(self.theta if restarted else self.phi, batch)
        after = self.loss(self.phi, batch).item()
        detected = self.t > 0 and after + THRESHOLD <= before
        full = len(self.stored) == CAPACITY
        branch = ("restart " * restarted) + ("detect " * detected) + ("overflow " * full)
        metrics = {"outer_loss": 0.0, "modulation": 0.0, "updated": False}
        if (detected and self.stored) or full:
            branch += f"update {len(self.stored)}"
            metrics = self.outer_update() | {"updated": True}
        else:
            self.stored.append(batch)
        if detected and self.restart_now:
            self.phi, _ = self.adapt(self.theta, batch)
            restarted = True
        self.reset = detected and not self.restart_now
        self.t += 1
        self.branches.append(branch)
        metrics |= {"loss": before, "adapted_loss": after, "detected": detected}
        return metrics | {"restarted": restarted}

    def check(self, state):
        flat = self.lib.flat
        for ours, theirs in ((state.params, self.theta), (state.mask, self.m)):
            assert_trees_close(flat(ours), {n: x.detach().numpy() for n, x in theirs.items()})
        assert_trees_close(flat(state.fast_params), {n: x.numpy() for n, x in self.phi.items()})
        assert int(state.stored) == len(self.stored) and bool(state.restart) == self.reset


@pytest.mark.parametrize(
    "kind, options",
    [
        ("binary", {}),
        pytest.param("relu", {}, marks=pytest.mark.slow),
        ("per_tensor", {"modulation": None}),
        ("constant", {}),
        ("binary", {"mask_theta": True}),
        ("relu", {"restart_now": True}),
    ],
    ids=str,
)
def test_timesteps_match_pytorch(kind, options):
    settings = {"mask_theta": False, "restart_now": False, "modulation": LAMBDA} | options
    step = quick_jit(make_step(GATES[kind], **options))
    # In float64 both take the same path; in float32 rounding separates them over the steps.
    with jax.enable_x64(True):
        batches = BATCHES[0].astype(np.float64), BATCHES[1]
        state = start(GATES[kind], batches=batches)
        reference = TorchLearner(state, kind, **settings)
        for t in range(TIMESTEPS):
            batch = jax.tree.map(lambda x, t=t: x[t], batches)
            state, metrics = step(state, batch)
            wanted = reference.step(batch)
            assert_trees_close({n: metrics[n] for n in wanted}, wanted)
            reference.check(state)
    if not options:
        branches = {"restart ", "", "detect ", "detect update 1", "overflow update 3"}
        assert branches <= set(reference.branches) or kind != "binary"


# By hand


def square(w, x):
    return jnp.mean((w - x) ** 2)


@pytest.mark.parametrize("stored", [1, 2, 3, 4, 5, 101])
@pytest.mark.parametrize("modulation, platform", [(None, "cpu"), (0.1, "cpu"), (0.1, "cuda")])
def test_pairs_of_the_buffer(monkeypatch, stored, modulation, platform):
    """On (w - x)^2 one step of 1/4 halves the distance, so J = mean ((w + s) / 2 - q)^2."""
    if platform != "cpu":
        monkeypatch.setattr(
            jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args)
        )
    values = np.random.default_rng(stored).normal(size=101)
    half = (stored + 1) // 2
    support, query = values[:half], values[half:stored]
    if stored == 1:
        query = support
    support = support[: len(query)]
    w, size, rate, mask_rate = 0.5, 0.25, 0.1, 0.2
    error = (w + support) / 2 - query
    mean = np.mean(error**2)
    omega = 1.0 if modulation is None else 1 - np.exp(-modulation * mean)
    # q = 2 error, G = 2 (w - s), and the gate is linear: dm = -mean q G.
    params = w - rate * omega * np.mean(2 * error)
    mask = size + mask_rate * omega * np.mean(2 * error * 2 * (w - support))

    gate, sgd, mask_sgd = gates.linear(size), optax.sgd(rate), optax.sgd(mask_rate)
    state = init_cmaml_state(
        jnp.array(w),
        gate,
        jax.random.key(0),
        batch=jnp.zeros(1),
        theta_optimizer=sgd,
        mask_optimizer=mask_sgd,
    )
    state = state._replace(
        buffer=jnp.asarray(values[:, None], jnp.float32),
        stored=jnp.int32(stored),
        step=jnp.int32(7),
    )
    step = make_step(
        gate,
        mask_sgd,
        loss_fn=square,
        theta_optimizer=sgd,
        inner_steps=1,
        modulation=modulation,
        detection_threshold=None if stored == 101 else 1e-3,
    )
    state, metrics = quick_jit(step)(state, jnp.array([9.0]))
    assert metrics["updated"] and metrics["detected"] == (stored != 101)
    assert state.stored == 0
    np.testing.assert_allclose(metrics["outer_loss"], mean, rtol=1e-5)
    np.testing.assert_allclose(metrics["modulation"], omega, rtol=1e-5)
    np.testing.assert_allclose(state.params, params, rtol=1e-5)
    np.testing.assert_allclose(state.mask, mask, rtol=1e-5)


def test_each_batch_is_prepared_once():
    prepared = []

    def plain_loss(w, x):
        return square(w, x[0] if isinstance(x, tuple) else x)

    class Prepared:
        def __call__(self, w, x):
            return plain_loss(w, x)

        def prepared(self, x):
            prepared.append(x)
            return (x,)

    gate, batch = GATES["relu"], jnp.arange(3.0)
    state = start(gate, params=jnp.array(1.0), batches=batch[None], inner_params=None)
    got, want = (
        make_step(gate, loss_fn=loss, restart_now=True)(state, batch)
        for loss in (Prepared(), plain_loss)
    )
    assert len(prepared) == 2  # the batch, and the support batch of a pair
    assert_trees_equal(got, want)


def test_algorithm_2_as_it_is_printed():
    """One pair drawn from the buffer, eta = g(J), phi restarted at once, on (w - x)^2 by hand."""
    values, batch = np.array([-1.0, 0.2, 1.5]), 9.0
    w, size, eta, mask_rate, strength = 0.5, 0.25, 0.1, 0.2, 0.3

    def printed(train, test):
        phi = w - size * 2 * (w - train)
        loss, q = (phi - test) ** 2, 2 * (phi - test)
        g = eta * (1 - np.exp(-strength * loss))
        # Algorithm 2 prints theta's line; m's is Eq. 10's with the same modulation.
        theta, m = w - g * q, size + mask_rate * g / eta * q * 2 * (w - train)
        return theta, m, theta - m * 2 * (theta - batch)

    gate, sgd, mask_sgd = gates.linear(size), optax.sgd(eta), optax.sgd(mask_rate)
    state = init_cmaml_state(
        jnp.array(w), gate, jax.random.key(0), batch=jnp.zeros(1), theta_optimizer=sgd,
        mask_optimizer=mask_sgd, capacity=7,
    )  # fmt: skip
    stored = jnp.zeros((7, 1)).at[:3, 0].set(values)
    state = state._replace(buffer=stored, stored=jnp.int32(3), step=jnp.int32(7))
    step = make_step(
        gate, mask_sgd, loss_fn=square, theta_optimizer=sgd, inner_steps=1, modulation=strength,
        detection_threshold=1e-3, pairs="one", restart_now=True,
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(1), 300)
    over_keys = quick_jit(jax.vmap(lambda key: step(state, jnp.array([batch]), key)[0]))
    got = over_keys(keys)
    assert not got.stored.any() and not got.restart.any()
    moved = np.stack([got.params, got.mask, got.fast_params], 1)
    wanted = np.array([printed(a, b) for a in values for b in values if a != b])
    nearest = np.abs(moved[:, None] - wanted).sum(-1).argmin(1)
    np.testing.assert_allclose(moved, wanted[nearest], rtol=1e-4, atol=1e-5)
    assert np.bincount(nearest, minlength=6).min() > 25  # of 50 expected: deviation 6.5

    state = state._replace(stored=jnp.int32(1), restart=jnp.array(False))
    alone, metrics = step(state, jnp.array([batch]), keys[0])
    assert metrics["detected"] and metrics["restarted"]  # in the same timestep
    np.testing.assert_allclose(alone.params, printed(values[0], values[0])[0], rtol=1e-5)


def test_fast_weights_by_hand():
    """Half way to 9 per step. The third batch detects the switch, the fourth restarts."""
    gate, sgd = gates.constant(0.25), optax.sgd(0.5)
    options = {"theta_optimizer": sgd, "mask_optimizer": None}
    state = init_cmaml_state(jnp.array(1.0), gate, jax.random.key(0), batch=jnp.zeros(1), **options)
    step = make_step(
        gate,
        None,
        loss_fn=square,
        theta_optimizer=sgd,
        inner_steps=1,
        modulation=None,
        detection_threshold=48.0,
    )
    first, metrics = step(state, jnp.array([33.0]))
    assert metrics["loss"] - metrics["adapted_loss"] == 768 and not metrics["detected"]
    assert metrics["restarted"] and not first.restart and first.stored == 1
    # A fall from 64 to 16 is just enough. The update, from the batches 1 and 1, has J = 0.
    fast, detected, losses = [], [], []
    for x in (1.0, 1.0, 9.0, 9.0, 9.0):
        state, metrics = step(state, jnp.array([x]))
        fast.append(float(state.fast_params))
        detected.append(bool(metrics["detected"]))
        losses.append(float(metrics["loss"]))
    assert fast == [1, 1, 5, 5, 7]  # 5 again: from theta = 1, not from 5
    assert detected == [False, False, True, False, False]
    assert losses == [0, 0, 64, 16, 16]
    assert state.params == 1 and state.stored == 2


def test_a_mask_of_ones_gives_the_bits_of_the_fixed_method():
    states = []
    for gate, optimizer in ((gates.binary(ALPHA, init=1.0), MASK_ADAM), (GATES["constant"], None)):
        step = make_step(gate, optimizer)
        scan = jax.jit(lambda state, step=step: jax.lax.scan(step, state, BATCHES))
        states.append(scan(start(gate, optimizer)))
    (sparse, metrics), (fixed, fixed_metrics) = states
    for name in ("params", "fast_params", "theta_opt", "buffer", "stored", "restart"):
        assert_trees_equal(getattr(sparse, name), getattr(fixed, name))
    assert_trees_equal(metrics, fixed_metrics)
    assert metrics["updated"].sum() > 2
    assert all(x.min() > 0 and (x != 1).any() for x in jax.tree.leaves(sparse.mask))


# Parameters that the inner loop only reads


def test_parts_of_the_parameters():
    params = init()
    part, others = partition(params, inner_params)
    assert part["norm"] == {"scale": None, "bias": None}
    assert partition(params, None)[0] is params
    doubled = jax.tree.map(lambda x: 2 * x, params)
    merged = combine(restrict(doubled, part), others)
    assert_trees_equal(merged, doubled | {"norm": params["norm"]})
    assert len(jax.tree.leaves(start(GATES["binary"]).mask)) == 3
    with pytest.raises(ValueError, match=r"^inner_params selects none of dense/kernel, head/bias"):
        partition(params, lambda name: False)


# Under JAX's transformations


def test_vmapped_scan_is_the_loop():
    """Vmapped seeds whose switches are detected at different times."""
    gate, count, seeds = GATES["binary"], 6, (0, 3)
    alone = [start(gate, params=init(seed)) for seed in seeds]
    states = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    step = make_step(gate)
    batches = jax.tree.map(lambda x: x[:count], BATCHES)
    together = quick_jit(jax.vmap(lambda state: jax.lax.scan(step, state, batches)))(states)
    one_step = quick_jit(step)
    for i, state in enumerate(alone):
        for t in range(count):
            state, metrics = one_step(state, jax.tree.map(lambda x, t=t: x[t], batches))
            got = jax.tree.map(lambda x, i=i, t=t: x[i, t], together[1])
            assert_trees_close(got, metrics, 1e-3, 1e-4)
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], together[0]), state, 1e-3, 1e-4)
    assert (together[1]["updated"][0] != together[1]["updated"][1]).any()


def test_stochastic_gate_is_drawn_once_a_timestep():
    gate = gates.Gate(
        lambda key, params: jnp.full((), 0.2),
        lambda m, key: m * jax.random.uniform(key),  # type: ignore[arg-type]
        stochastic=True,
    )
    state = init_cmaml_state(
        jnp.array(1.0),
        gate,
        jax.random.key(0),
        batch=jnp.zeros(1),
        theta_optimizer=ADAM,
        mask_optimizer=None,
    )
    step = make_step(gate, None, loss_fn=square, inner_steps=1)
    key = jax.random.key(3)
    state, _ = step(state, jnp.array([3.0]), key)
    np.testing.assert_allclose(state.fast_params, 1 + 0.2 * jax.random.uniform(key) * 4, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^key is None"):
        generated = gates.generated(ALPHA, embedding=4)
        make_step(generated)(start(generated), jax.tree.map(lambda x: x[0], BATCHES))


def test_no_second_compilation_and_states_may_be_donated(caplog):
    params = init()
    params["head"]["bias"] = jnp.full(WAYS, 0.5)
    assert params["head"]["bias"].weak_type
    gate = GATES["binary"]
    state = start(gate, params=params)
    step = jax.jit(make_step(gate), donate_argnums=0)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        state, _ = step(state, jax.tree.map(lambda x: x[0], BATCHES))
        assert "Compiling jit(cmaml_step)" in caplog.text
        caplog.clear()
        for t in (1, 2):
            state, _ = step(state, jax.tree.map(lambda x, t=t: x[t], BATCHES))
    assert "Compiling" not in caplog.text
    np.testing.assert_array_equal(params["norm"]["scale"], np.ones(6))


def test_bfloat16():
    """Step sizes, sums and updates keep the dtypes of the state."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), init())
    state = start(GATES["relu"], params=params)
    step = quick_jit(make_step(GATES["relu"]))
    kinds = [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    for t in range(5):
        state, metrics = step(state, jax.tree.map(lambda x, t=t: x[t], BATCHES))
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(state)] == kinds
    assert np.isfinite(metrics["loss"].astype(np.float32))


# Errors

BATCH = jax.tree.map(lambda x: x[0], BATCHES)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"batch": BATCH[0]},
            ValueError,
            "^batch must have the tree of state.buffer: got",
        ),
        (
            {"batch": (BATCH[0][:3], BATCH[1])},
            ValueError,
            r"^batch\[0\] has shape \(3, 5\), float32; state.buffer has \(8, 5\), float32",
        ),
        (
            {"batch": (BATCH[0], BATCH[1].astype(np.float32))},
            ValueError,
            r"^batch\[1\] has shape \(8,\), float32; state.buffer has \(8,\), int32",
        ),
        ({"inner_steps": 1.0}, TypeError, "^inner_steps must be a Python int"),
        ({"detection_threshold": 0.0}, ValueError, "^detection_threshold must be positive or None"),
        ({"modulation": -1.0}, ValueError, "^modulation must be positive or None, got -1.0"),
        (
            {"loss_fn": lambda w, batch: (w["head"]["bias"].sum(), {"detected": 0.0})},
            ValueError,
            "^loss_fn: no metric may be called 'detected'",
        ),
        ({"loss_fn": lambda w, batch: batch[0]}, ValueError, "^loss_fn must return a scalar"),
        ({"pairs": "two"}, ValueError, "^pairs must be 'all' or 'one', got 'two'"),
        ({"pairs": "one"}, ValueError, "^key is None, want a PRNG key: pairs='one' draws stored"),
        (
            {"gate": gates.Gate(lambda key, p: p, lambda m, key: m["head"])},
            ValueError,
            "^step_sizes must have the tree of state.fast_params",
        ),
    ],
)
def test_errors_name_the_argument(change, error, message):
    given = {"batch": BATCH} | change
    batch = given.pop("batch")
    with pytest.raises(error, match=message):
        make_step(**{"gate": GATES["relu"]} | given)(start(GATES["relu"]), batch)


def test_errors_of_the_first_state():
    with pytest.raises(TypeError, match=r"^params\[n\] must be floating, got int32"):
        start(GATES["relu"], params={"n": jnp.arange(3)})
    with pytest.raises(ValueError, match=r"^capacity must be 1 or more, got 0"):
        start(GATES["relu"], capacity=0)
