"""Whole runs on switching streams: against plain loops, in pieces, from the shell."""

import contextlib
import dataclasses
import functools
import json
import shutil
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import quick_jit

from experiments import online, plots
from experiments.online.presets import preset_config
from jaxsparse import cross_entropy, gates, nn
from jaxsparse.cmaml import cmaml_step, init_cmaml_state
from jaxsparse.continual.bgd import bgd, bgd_step, gaussian
from jaxsparse.continual.er import init_online_state
from jaxsparse.continual.online import init_metabgd_state, metabgd_step
from jaxsparse.data import ImageSet
from jaxsparse.data.switching import first_task, next_batch, side_by_side
from jaxsparse.training import ConfigError, Diverged, Hooks, RunError, RunFolder, Stopped
from jaxsparse.training.online import (
    OnlineConfig,
    Trace,
    make_learner,
    make_online,
    make_program,
    pretrain,
    run_online,
)
from jaxsparse.training.online.learners import Pretrained, make_gate
from jaxsparse.training.online.pretrain_program import (
    QUERY_SHOTS,
    pretraining_classes,
    sample_episodes,
)
from jaxsparse.training.online.result import accuracies, around_switches, detections, make_result
from jaxsparse.training.runner import Runner

SIDE, T = 16, 13
STREAM, INIT, LEARN = 0, 1, 2  # uses of keys
SMALL = OnlineConfig(
    method="online-adam",
    p=0.7,
    timesteps=T,
    ways=3,
    shots=2,
    width=6,
    inner_steps=2,
    inner_lr=0.3,
    theta_lr=0.05,
    log_every=4,
    capacity=4,
    detection_threshold=0.3,
    modulation=0.7,
    pretrain_steps=2,
    pretrain_epochs=3,
    pretrain_batch_size=2,
)


def images_of(classes, seed, count=6):
    """Noise with a bright row, a different one for each class."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, size=(classes, count, SIDE, SIDE, 1))
    for row in range(classes):
        images[row, :, row] += 120
    names = tuple(map(str, range(classes)))
    counts = np.full(classes, count, np.int32)
    return ImageSet(images.astype(np.uint8), counts, names, (0.0,), (1.0,))


DRAW = quick_jit(next_batch, static_argnames="shots")
DATA = side_by_side({"a": images_of(12, 0), "b": images_of(4, 1), "c": images_of(3, 2)})


@pytest.fixture
def small_network(monkeypatch):
    """A network without convolutions, which compiles quickly."""
    monkeypatch.setattr(nn, "conv4", small_model)


def small_model(ways, width, image_shape, blocks="auto"):
    return nn.mlp(ways, (width,), image_shape)


def run_compiled(config, key=None, pretrained=()):
    run = quick_jit(make_online(config, DATA))
    return run(jax.random.key(0) if key is None else key, DATA, pretrained)


def batches(config, key=None):
    """The stream that follows from the seed alone."""
    key = jax.random.fold_in(jax.random.key(0) if key is None else key, STREAM)
    task = first_task(config.ways)
    for t in range(config.timesteps):
        task, batch, info = DRAW(
            jax.random.fold_in(key, t), task, DATA, stay_probability=config.p, shots=config.shots
        )
        yield t, batch, info


@functools.cache
def model_and_key():
    """The network, its initial weights, and the key for other draws before the stream."""
    model = small_model(SMALL.ways, SMALL.width, (SIDE, SIDE, 1))
    model_key, mask_key = jax.random.split(jax.random.fold_in(jax.random.key(0), INIT))
    return model, model.init(model_key), mask_key


def negative_log_likelihood(model):
    def loss(params, batch):
        images, labels = batch
        rows = jax.nn.log_softmax(model.apply(params, images))
        return -rows[jnp.arange(len(labels)), labels].mean()

    return loss


def share_right(model, params, batch):
    return np.mean(np.asarray(model.apply(params, batch[0])).argmax(1) == np.asarray(batch[1]))


def test_online_adam_matches_a_plain_loop(small_network):
    got = run_compiled(SMALL)
    model, params, _ = model_and_key()
    gradient, adam = quick_jit(jax.grad(negative_log_likelihood(model))), optax.adam(SMALL.theta_lr)
    opt_state, score, infos = adam.init(params), [], []
    for t, batch, info in batches(SMALL):
        score.append(share_right(model, params, batch) if t else 0.0)
        infos.append((int(info["dataset"]), bool(info["switched"])))
        if t:  # the first batch is not learned from
            updates, opt_state = adam.update(gradient(params, batch), opt_state)
            params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(got["trace"].score, score, atol=1e-6)
    assert list(zip(*map(np.ndarray.tolist, map(np.asarray, got["trace"][2:4])), strict=True)) == (
        infos
    )
    chex.assert_trees_all_close(got["state"].learner.params, params, atol=3e-4)
    assert np.ptp(score[1:]) > 0.4  # otherwise the test would show little


CMAML = {
    "sparse-cmaml": (gates.binary(0.3, init=(-0.1, 0.5)), optax.adam(0.01)),
    "sparse-relu-cmaml": (gates.relu((-0.1, 0.5)), optax.adam(0.01)),
    "cmaml": (gates.per_tensor(0.3), optax.adam(0.01)),
    "cmaml-fixed": (gates.constant(0.3), None),
}


def test_algorithm_2_as_it_is_printed_can_be_asked_for(small_network):
    config = dataclasses.replace(
        SMALL, method="sparse-cmaml", mask_init="-0.1:0.5", inner_steps=1, pairs="one",
        outer_optimizer="sgd", restart_now=True, mask_lr=0.02, detection_threshold=0.05,
    )  # fmt: skip
    got = run_compiled(config)
    model, params, mask_key = model_and_key()
    gate, loss_fn = gates.binary(0.3, init=(-0.1, 0.5)), cross_entropy(model)
    optimizers = {"theta_optimizer": optax.sgd(0.05), "mask_optimizer": optax.sgd(0.02)}
    learn_key, state, detected = jax.random.fold_in(jax.random.key(0), LEARN), None, []
    for t, batch, _ in batches(config):
        if state is None:
            state = init_cmaml_state(params, gate, mask_key, batch=batch, capacity=4, **optimizers)
        state, metrics = cmaml_step(
            state, batch, jax.random.fold_in(learn_key, t), loss_fn=loss_fn,
            gate=gate, inner_steps=1, detection_threshold=0.05, modulation=0.7, pairs="one",
            restart_now=True, **optimizers,
        )  # fmt: skip
        detected.append(bool(metrics["detected"]))
    assert np.asarray(got["trace"].detected).tolist() == detected and any(detected)
    for name in ("params", "mask", "fast_params"):
        mine = getattr(got["state"].learner, name)
        chex.assert_trees_all_close(mine, getattr(state, name), atol=1e-4)


@pytest.mark.parametrize("method", CMAML)
def test_cmaml_equals_its_single_steps(small_network, method):
    config = dataclasses.replace(SMALL, method=method, mask_init="-0.1:0.5")
    got = run_compiled(config)
    model, params, mask_key = model_and_key()
    gate, mask_optimizer = CMAML[method]
    optimizers = {"theta_optimizer": optax.adam(0.05), "mask_optimizer": mask_optimizer}
    state, loss_fn, score, detected = None, cross_entropy(model), [], []
    for _, batch, _ in batches(config):
        if state is None:
            state = init_cmaml_state(params, gate, mask_key, batch=batch, capacity=4, **optimizers)
        state, metrics = cmaml_step(
            state, batch, loss_fn=loss_fn, gate=gate, inner_steps=2, detection_threshold=0.3,
            modulation=0.7, **optimizers,
        )  # fmt: skip
        score.append(float(metrics["accuracy"]))
        detected.append(bool(metrics["detected"]))
    np.testing.assert_allclose(got["trace"].score, [0.0, *score[1:]], atol=1e-6)
    assert np.asarray(got["trace"].detected).tolist() == detected
    assert any(detected) and not all(detected)
    for name in ("params", "mask"):
        mine = getattr(got["state"].learner, name)
        chex.assert_trees_all_close(mine, getattr(state, name), atol=3e-4)
    assert bool(got["sparsity"]) == (method != "cmaml-fixed")


@pytest.mark.parametrize("method", ["bgd", "metabgd"])
def test_bgd_scores_the_mean_of_its_samples(small_network, method):
    config = dataclasses.replace(SMALL, method=method, theta_lr=10.0, samples=3, initial_std=0.1)
    got = run_compiled(config)
    model, params, _ = model_and_key()
    optimizer, score = bgd(10.0), [0.0]
    given = {"loss_fn": cross_entropy(model), "optimizer": optimizer, "samples": 3}
    if method == "bgd":
        state, step = init_online_state(gaussian(params, 0.1), optimizer), bgd_step
    else:
        state, step = init_metabgd_state(gaussian(params, 0.1), optimizer), metabgd_step
        given |= {"step_sizes": jax.tree.map(lambda x: jnp.float32(0.3), params), "inner_steps": 2}
    key = jax.random.fold_in(jax.random.key(0), LEARN)
    for t, batch, _ in batches(config):
        if t or method == "metabgd":  # which only creates its fast weights at first
            state, metrics = step(state, batch, jax.random.fold_in(key, t), **given)
        if t:
            score.append(float(metrics["accuracy"]))
    np.testing.assert_allclose(got["trace"].score, score, atol=1e-6)
    chex.assert_trees_all_close(got["state"].learner.params, state.params, atol=1e-4)


def test_metacog_masks_the_convolutions_with_themselves():
    config = dataclasses.replace(
        SMALL, method="metacog", theta_lr=10.0, samples=1, initial_std=1e-6, width=2
    )
    learner, (_, batch, _) = make_learner(config, (SIDE, SIDE, 1)), next(batches(config))
    state = quick_jit(lambda key: learner.init(key, batch, ()))(jax.random.key(0))
    _, metrics = quick_jit(learner.learn)(state, batch, jax.random.key(1), 1)
    params = state.params.mean
    masked = {
        name: jax.tree.map(lambda x: x / (1 + jnp.exp(-x)), leaf) if "conv" in name else leaf
        for name, leaf in params.items()
    }
    loss = quick_jit(negative_log_likelihood(nn.conv4(config.ways, 2, (SIDE, SIDE, 1))))
    assert metrics["loss"] == pytest.approx(float(loss(masked, batch)), abs=1e-3)
    assert abs(float(loss(masked, batch) - loss(params, batch))) > 1e-2


@pytest.mark.parametrize(("method", "rate"), [("maml", 0.3), ("anil", 3.0)])
def test_frozen_methods_adapt_to_the_previous_batch(small_network, method, rate):
    config = dataclasses.replace(SMALL, method=method, inner_lr=rate)
    model, _, _ = model_and_key()
    theta = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(9)))
    got = run_compiled(config, pretrained=Pretrained(theta, ()))
    gradient = quick_jit(jax.grad(negative_log_likelihood(model)))
    score, phi = [], theta
    for t, batch, _ in batches(config):
        score.append(share_right(model, phi, batch) if t else 0.0)
        phi = theta
        for _ in range(2):
            moved = jax.tree.map(lambda w, g: w - rate * g, phi, gradient(phi, batch))
            phi = moved if method == "maml" else {**phi, "head": moved["head"]}
    np.testing.assert_allclose(got["trace"].score, score, atol=1e-6)
    assert np.ptp(score[1:]) > 0.3


def test_every_method_sees_one_stream_and_starts_from_the_same_weights(small_network):
    starts, streams = [], []
    for method in ("online-adam", "metabgd"):
        config = dataclasses.replace(SMALL, method=method)
        learner = make_learner(config, (SIDE, SIDE, 1))
        init = learner.init(jax.random.key(4), (jnp.ones((6, SIDE, SIDE, 1)), jnp.ones(6, int)), ())
        starts.append(init.params.mean if method == "metabgd" else init.params)
        streams.append(run_compiled(config)["trace"])
    chex.assert_trees_all_equal(*starts)
    chex.assert_trees_all_equal(*(trace[2:4] for trace in streams))
    other = run_compiled(SMALL, key=jax.random.key(1))["trace"]
    assert not (np.asarray(other.switched) == np.asarray(streams[0].switched)).all()


def test_norm_parameters_are_not_adapted():
    config = dataclasses.replace(SMALL, method="sparse-cmaml")
    learner = make_learner(config, (SIDE, SIDE, 1))
    batch = jax.ShapeDtypeStruct((6, SIDE, SIDE, 1), jnp.float32), jax.ShapeDtypeStruct((6,), int)
    state = jax.jit(lambda key: learner.init(key, batch, ()))(jax.random.key(0))
    assert set(jax.tree.leaves(state.mask["norm1"])) == set()
    assert len(jax.tree.leaves(state.mask)) == 10
    assert len(jax.tree.leaves(state.params)) == 18
    assert state.buffer[0].shape == (4, 6, SIDE, SIDE, 1)


def test_masks_may_be_drawn_as_layers_are():
    model = nn.conv4(10, 64, (28, 28, 1))
    params = jax.eval_shape(model.init, jax.random.key(0))
    for method in ("sparse-cmaml", "sparse-relu-cmaml"):
        gate = make_gate(OnlineConfig(method=method, mask_init="pytorch"), model)
        m = gate.init(jax.random.key(0), params)
        for name, bound in (("conv1", 1 / 3), ("conv2", 1 / 24), ("head", 1 / 8)):
            for leaf in m[name].values():
                assert bound * 0.75 < np.abs(leaf).max() <= bound
        off = np.concatenate([np.ravel(x) < 0 for x in jax.tree.leaves(m)]).mean()
        assert off == pytest.approx(0.5, abs=0.01)
    for text, least in (("0.005:0.1", 0.005), ("0.2", 0.2)):
        gate = make_gate(OnlineConfig(mask_init=text), model)
        m = gate.init(jax.random.key(0), {"w": jnp.ones(500)})["w"]
        assert m.min() == pytest.approx(least, rel=0.3)


def test_a_run_in_pieces_gives_the_same_bits(small_network):
    config = dataclasses.replace(SMALL, method="sparse-cmaml", mask_init="-0.1:0.5")
    program, key = make_program(config, DATA), jax.random.key(0)
    train, start = jax.jit(program.train), program.init(key, ())
    whole = train(start, key, DATA, T)
    pieces = start
    for steps in (1, 9, 3):
        pieces = train(pieces, key, DATA, steps)
    chex.assert_trees_all_equal(pieces, whole)
    assert int(whole.step) == T and np.asarray(whole.trace.detected).any()


# The host loop


def new_folder(path):
    return RunFolder.create(path, {}, "interval")


def test_a_resumed_run_ends_like_an_uninterrupted_one(small_network, tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "segment", lambda self, left, unit: 1)
    config = dataclasses.replace(SMALL, seeds=2)
    whole = run_online(config, DATA, new_folder(tmp_path / "whole"), Hooks())
    rows = RunFolder.open(tmp_path / "whole", "interval").rows()
    assert [row["step"] for row in rows] == [0, 4, 8, 12, 13]
    folder = new_folder(tmp_path / "stopped")
    stopped_at = []
    # Within an interval, at its end before its row is written, in the next, at the very end.
    for allowed in (1, 1, 1, 6):
        asked = iter([False] * allowed + [True])
        with pytest.raises(Stopped, match="stopped at timestep") as stop:
            run_online(config, DATA, folder, Hooks(should_stop=lambda a=asked: next(a)))
        stopped_at.append(int(str(stop.value).split()[-1]))
        folder = RunFolder.open(folder.path, "interval")
    assert stopped_at == [2, 4, 6, T]
    assert run_online(config, DATA, folder, Hooks()) == whole
    assert folder.rows() == rows


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(small_network, tmp_path):
    whole = run_online(SMALL, DATA, new_folder(tmp_path / "whole"), Hooks())
    rows = RunFolder.open(tmp_path / "whole", "interval").rows()

    def end(row):
        raise InterruptedError

    folder = new_folder(tmp_path / "ended")
    for _ in range(2):
        with pytest.raises(InterruptedError):
            run_online(SMALL, DATA, folder, Hooks(row=end))
        folder = RunFolder.open(folder.path, "interval")
    assert len(folder.rows()) == 1
    assert run_online(SMALL, DATA, folder, Hooks()) == whole
    assert folder.rows() == rows


def test_rows_without_a_checkpoint_are_not_dropped(small_network, tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "segment", lambda self, left, unit: 1)
    folder, asked = new_folder(tmp_path / "run"), iter([False] * 6 + [True])
    with pytest.raises(Stopped):
        run_online(SMALL, DATA, folder, Hooks(should_stop=lambda: next(asked)))
    rows = folder.rows()
    assert [row["step"] for row in rows] == [0, 4]
    shutil.rmtree(folder.path / "checkpoints")
    for _ in range(2):
        with pytest.raises(RunError, match="has the metrics of interval 1 and no checkpoint"):
            run_online(SMALL, DATA, RunFolder.open(folder.path, "interval"), Hooks())
        assert folder.rows() == rows


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_the_last_update_must_leave_finite_weights(small_network, tmp_path):
    config = dataclasses.replace(SMALL, timesteps=2, theta_lr=1e39, seeds=2, seed=7)
    folder = new_folder(tmp_path / "run")
    with pytest.raises(Diverged, match=r"the parameter .* is not finite with seed 7 after .* 2"):
        run_online(config, DATA, folder, Hooks())
    assert folder.result() is None
    (saved,) = (folder.path / "checkpoints").iterdir()
    assert json.loads((saved / "position" / "metadata").read_text())["step"] == 1


def test_seeds_together_give_the_results_of_each_alone(small_network, tmp_path):
    config = dataclasses.replace(SMALL, seeds=3, seed=4)
    together = run_online(config, DATA, new_folder(tmp_path / "all"), Hooks())
    for index in (1, 2):
        own = dataclasses.replace(config, seeds=1, seed=4 + index)
        alone = run_online(own, DATA, new_folder(tmp_path / str(index)), Hooks())
        assert alone["seeds"] == [together["seeds"][index]]
    by_seed = [seed["accuracy"] for seed in together["seeds"]]
    assert together["accuracy"] == {
        "mean": np.mean(by_seed),
        "std": pytest.approx(np.std(by_seed, ddof=1)),
    }
    assert np.std(by_seed) > 0


def test_the_last_row_agrees_with_the_result(small_network, tmp_path):
    config = dataclasses.replace(SMALL, method="cmaml-fixed", timesteps=40, p=0.8)
    folder = new_folder(tmp_path / "run")
    (seed,) = run_online(config, DATA, folder, Hooks())["seeds"]
    row = folder.rows()[-1]
    assert row["accuracy"] == pytest.approx(seed["accuracy"])
    seen = {name: value for name, value in seed["by_dataset"].items() if value is not None}
    assert row["by_dataset"] == pytest.approx(seen)
    for name, value in seed["detections"].items():
        assert row[name] == value
    intervals = [row["interval_accuracy"] for row in folder.rows()[1:]]
    assert np.mean(intervals) == pytest.approx(seed["accuracy"])
    assert seed["detections"]["hits"] > 0


# Counts, by hand


def trace_of(switched, detected=(), length=12, dataset=0, score=0.0):
    def marked(where):
        return np.isin(np.arange(length), where)

    column = np.full(length, 0.0)
    return Trace(
        column + score, column, column.astype(int) + dataset, marked(switched), marked(detected)
    )


@pytest.mark.parametrize(
    ("switched", "detected", "counts"),
    [
        ([0, 4, 8], [4, 9], (2, 2, 0, 0.5)),
        ([0, 4, 8], [6], (2, 0, 1, None)),  # two timesteps late
        ([0, 4], [1], (1, 0, 1, None)),  # the first batch is no switch
        ([0, 4, 5], [5], (2, 1, 0, 0.0)),  # the second's, not the first's, one late
        ([0, 4, 5], [4, 6], (2, 2, 0, 0.5)),
        ([0, 4], [4, 5], (1, 1, 0, 0.0)),  # twice, and no false alarm
        ([0, 11], [11], (1, 1, 0, 0.0)),  # at the very end
        ([0, 11], [3], (1, 0, 1, None)),
        ([0], [], (0, 0, 0, None)),
    ],
)
def test_detections_by_hand(switched, detected, counts):
    got = detections(trace_of(switched, detected))
    assert (got["switches"], got["hits"], got["false_alarms"]) == counts[:3]
    if counts[3] is None:
        assert np.isnan(got["mean_delay"])
    else:
        assert got["mean_delay"] == counts[3]


def test_accuracy_around_switches_by_hand():
    score = np.arange(12) / 10
    curve = around_switches(trace_of([0, 3, 8], score=score))
    by_offset = dict(zip(curve["offset"], curve["accuracy"], strict=True))
    assert list(by_offset) == list(range(-5, 21))
    want = {
        -5: 0.3,  # 8 - 5 is in the task before; 3 - 5 is before the stream
        -3: 0.5,  # the score at 0 is not counted
        -2: (0.1 + 0.6) / 2,
        -1: (0.2 + 0.7) / 2,
        0: (0.3 + 0.8) / 2,
        3: (0.6 + 1.1) / 2,
        4: 0.7,  # the second task ends with the stream; after 5 steps both have ended
    }
    assert {d: by_offset[d] for d in want} == pytest.approx(want)
    assert np.isnan(by_offset[5])
    assert np.isnan(around_switches(trace_of([0]))["accuracy"]).all()


def test_accuracies_by_hand():
    trace = trace_of([0], length=4, dataset=np.array([0, 2, 2, 0]), score=np.arange(4.0))
    got = accuracies(trace, ("a", "b", "c"))
    assert got["accuracy"] == 1.5
    assert got["by_dataset"]["a"] == 1.5 and got["by_dataset"]["c"] == 1.5
    assert np.isnan(got["by_dataset"]["b"])
    stacked = jax.tree.map(lambda *x: np.stack(x), trace, trace._replace(score=trace.score + 2))
    rows = [{"sparsity": {}}]
    result = make_result(dataclasses.replace(SMALL, seeds=2), ("a", "b", "c"), rows, stacked)
    # 1.5 and 3.5: the deviation of a sample of two, with N - 1.
    assert result["accuracy"] == {"mean": 2.5, "std": pytest.approx(2**0.5)}
    assert result["by_dataset"]["b"] is None
    assert result["seeds"][0]["by_dataset"]["b"] is None
    json.dumps(result, allow_nan=False)


# Pretraining


def test_episodes_keep_classes_and_images_apart():
    training, held_out = pretraining_classes(SMALL, DATA)
    assert (training, held_out) == ((0, 6), (6, 3))
    for classes in (training, held_out):
        support, query = sample_episodes(jax.random.key(0), DATA, classes, 20, 3, 5)
        for (images, labels), shots, halves in ((support, 5, (0, 3)), (query, QUERY_SHOTS, (3, 6))):
            assert labels.tolist() == [np.repeat(range(3), shots).tolist()] * 20
            seen = set()
            for episode in np.rint(np.asarray(images) * 255).astype(np.uint8):
                for one in episode:
                    (at,) = np.flatnonzero((DATA.images == one).all((1, 2, 3)))
                    seen.add((int(at) // 6, int(at) % 6))
            first, count = classes
            assert seen == {(c, i) for c in range(first, first + count) for i in range(*halves)}
    with pytest.raises(ConfigError, match=r"ways must be lower with maml: .* 12 of a are too few"):
        pretraining_classes(dataclasses.replace(SMALL, ways=7, method="maml"), DATA)
    single = side_by_side({"a": images_of(12, 0, count=1), "b": images_of(4, 1)})
    with pytest.raises(ConfigError, match="a class needs 2 images, a has one with 1"):
        pretraining_classes(dataclasses.replace(SMALL, method="maml"), single)


@pytest.mark.parametrize("method", ["fine-tuning", "maml", "anil"])
def test_a_run_without_its_pretraining_is_refused(small_network, method):
    run = make_online(dataclasses.replace(SMALL, method=method), DATA)
    with pytest.raises(ConfigError, match=f"{method} needs `pretrained`"):
        run(jax.random.key(0), DATA)


@pytest.mark.slow
def test_pretraining_resumes_and_is_stored(small_network, tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, method="fine-tuning")
    monkeypatch.setattr(Runner, "segment", lambda self, left, unit: 1)

    def run(name, **hooks):
        monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / name))
        return pretrain(config, DATA, Hooks(**hooks))

    rows = []
    whole = run("whole", row=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert int(whole.opt_state[0].count) in (2, 4, 6)  # the count of the best epoch
    asked = iter([False] * 6 + [True])  # between two batches of the second validation
    with pytest.raises(Stopped, match="stopped at meta-step 4"):
        run("stopped", should_stop=lambda: next(asked))
    chex.assert_trees_all_equal(run("stopped"), whole)
    again = []
    chex.assert_trees_all_equal(run("whole", row=again.append), whole)
    assert not again  # nothing was left to do
    best = max(rows, key=lambda row: row["val_accuracy"])  # the first one if several are best
    assert int(whole.opt_state[0].count) == 2 * best["epoch"]

    got = run_compiled(config, pretrained=whole)["state"].learner
    assert int(got.opt_state[0].count) == 2 * best["epoch"] + T - 1  # Adam continues


@pytest.mark.slow
def test_a_pretrained_run_resumes_without_its_cache(small_network, tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, method="maml", seeds=3)
    monkeypatch.setattr(Runner, "segment", lambda self, left, unit: 1)
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache[1]"))
    whole = run_online(config, DATA, new_folder(tmp_path / "whole"), Hooks())
    folder, rows = new_folder(tmp_path / "run"), []
    asked = iter([False, True])
    with pytest.raises(Stopped, match="timestep 2"):
        run_online(config, DATA, folder, Hooks(row=rows.append, should_stop=lambda: next(asked)))
    shutil.rmtree(tmp_path / "cache[1]")
    folder = RunFolder.open(folder.path, "interval")
    assert run_online(config, DATA, folder, Hooks(row=rows.append)) == whole
    assert all("epoch" not in row for row in rows)
    assert not (tmp_path / "cache[1]" / "pretrained").exists()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    ("rate", "what"),
    [
        pytest.param(1e39, "the parameter .*", marks=pytest.mark.slow),
        (3e38, "on the held-out classes"),
    ],
)
def test_a_diverging_pretraining_is_reported(rate, what, small_network, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    config = dataclasses.replace(SMALL, method="maml", theta_lr=rate, pretrain_steps=1)
    for _ in range(2):
        with pytest.raises(Diverged, match=f"{what} is not finite with seed 0 after meta-step 1"):
            pretrain(config, DATA, Hooks())
    (folder,) = (tmp_path / "cache" / "pretrained").iterdir()
    assert not (folder / "result.json").exists()


def test_pretraining_is_repeated_in_another_environment(small_network, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    config = dataclasses.replace(SMALL, method="maml", pretrain_epochs=1)
    one = pretrain(config, DATA, Hooks())
    with jax.threefry_partitionable(False):
        other = pretrain(config, DATA, Hooks())
    assert len(list((tmp_path / "cache" / "pretrained").iterdir())) == 2
    assert not np.array_equal(*(jax.tree.leaves(x.params)[1] for x in (one, other)))


def test_a_damaged_pretraining_says_what_to_delete(small_network, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    config = dataclasses.replace(SMALL, method="maml", pretrain_epochs=1)
    pretrain(config, DATA, Hooks())
    (folder,) = (tmp_path / "cache" / "pretrained").iterdir()
    for path in (folder / "checkpoints").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match=f"none of the checkpoints.*pretrain again, delete {folder}"):
        pretrain(config, DATA, Hooks())


def test_a_second_pretraining_waits_for_the_first(small_network, tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, method="fine-tuning")
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path))
    first = pretrain(config, DATA, Hooks())
    (path,) = (tmp_path / "pretrained").iterdir()
    lines: list[str] = []
    with contextlib.ExitStack() as other:
        other.enter_context(RunFolder(path).lock())
        with pytest.raises(Stopped, match="stopped while waiting for another run's pretraining"):
            pretrain(config, DATA, Hooks(warn=lines.append, should_stop=lambda: True))
        polls = iter([None, None, other.close])
        monkeypatch.setattr(time, "sleep", lambda seconds: (next(polls) or (lambda: None))())
        again: list[dict] = []
        found = pretrain(config, DATA, Hooks(warn=lines.append, row=again.append))
    chex.assert_trees_all_equal(found, first)
    assert not again  # what the first had finished was read
    assert lines == ["another run is pretraining the network that this run needs; waiting"] * 2


# The command line

FLAGS = ["--data", "glyphs", "--timesteps", "12", "--log-every", "5", "--width", "4", "--p", "0.8"]


def run_command(*flags):
    online.main([*FLAGS, *map(str, flags)])


def test_the_command_on_embedded_letters(small_network, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    run_command("--method", "sparse-cmaml", "--inner-steps", 2, "--out", out)
    printed = capsys.readouterr().out
    assert "sparse-cmaml on glyphs images, p = 0.8" in printed
    assert "sparsity of dense1/kernel" in printed
    result = json.loads((out / "result.json").read_text())
    rows = RunFolder.open(out, "interval").rows()
    assert [row["step"] for row in rows] == [0, 5, 10, 12]
    assert result["accuracy"] == {"mean": result["seeds"][0]["accuracy"], "std": None}
    for name in ("online.png", "switches.png", "sparsity.png", "report.html"):
        assert (out / name).stat().st_size > 0
    before = (out / "result.json").read_bytes()
    online.main(["--resume", str(out)])  # finished: only shown again
    assert "sparse-cmaml at p = 0.8" in capsys.readouterr().out
    assert (out / "result.json").read_bytes() == before
    (out / "online.png").unlink()
    monkeypatch.setattr(sys, "argv", ["plots", str(out)])
    plots.main()
    assert (out / "online.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--p", "1.5"], "p must lie in [0, 1], got 1.5"),
        (["--p", "nan"], "p must lie in [0, 1], got nan"),
        (["--p", "often"], "--p"),
        (["--ways", "1"], "ways must be 2 or more, got 1"),
        (["--ways", "11"], "ways must be at most 10, the classes of cyrillic; got 11"),
        (["--shots", "21"], "shots must be at most 20"),
        (["--timesteps", "0"], "timesteps must be 1 or more, got 0"),
        (["--detection-threshold", "-1"], "detection_threshold must be above 0, got -1.0"),
        (["--mask-init", "auto"], "mask_init must be pytorch, kaiming, a number or low:high"),
        (["--method", "magic"], "method must be one of sparse-cmaml"),
        (["--method", "bgd", "--pairs", "one"], "pairs must be all with bgd, got one"),
        (
            ["--method", "maml", "--outer-optimizer", "sgd"],
            "outer_optimizer must be adam with maml, got sgd",
        ),
        (["--data", "real", "--data-dir", "/nowhere"], "/nowhere"),
        (["--resume", "/nowhere"], "/nowhere holds no run"),
    ],
)
def test_settings_that_cannot_run_are_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command("--out", tmp_path / "run", *flags)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(lines) == 1 and message in lines[0], lines
    assert not (tmp_path / "run").exists()


def test_settings_come_from_the_nearest_published_p():
    sparse = preset_config(0.98, "sparse-cmaml")
    assert (sparse.inner_lr, sparse.mask_lr, sparse.mask_init) == (0.3, 0.01, "pytorch")
    assert (sparse.theta_lr, sparse.modulation, sparse.detection_threshold) == (0.005, 1000, 3)
    assert (sparse.ways, sparse.shots, sparse.timesteps, sparse.capacity) == (10, 5, 10_000, 101)
    often = preset_config("0.91", "sparse-cmaml")
    assert (often.p, often.inner_lr, often.mask_lr, often.mask_init) == (
        0.91, 0.3, 0.003, "0.005:0.1")  # fmt: skip
    assert (often.theta_lr, often.modulation, often.detection_threshold) == (0.001, 1, 1.5)
    assert [preset_config(p, "cmaml").inner_lr for p in (0.98, 0.9)] == [0.01, 0.0005]
    assert [preset_config(p, "cmaml-fixed").inner_lr for p in (1.0, 0.0)] == [0.1, 0.3]
    assert preset_config(0.98, "maml").pretrain_batch_size == 8
