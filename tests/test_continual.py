"""Whole runs over streams: against NumPy, in pieces, several seeds, from the shell."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import quick_jit
from processes import open_run

from experiments import continual
from experiments.continual.presets import preset_config
from jaxsparse import gates, lamaml_step, losses
from jaxsparse.data import LabelledSet, streams
from jaxsparse.training import ConfigError, Diverged, Hooks, RunError, RunFolder, Stopped
from jaxsparse.training.continual import (
    META_METHODS,
    ContinualConfig,
    Rates,
    make_program,
    make_stream,
    run_stream,
    scan_stream,
    used_rates,
)
from jaxsparse.training.continual import run as run_module
from jaxsparse.training.continual.learners import (
    TaskBatch,
    default_rates,
    make_learner,
    make_model,
)
from jaxsparse.training.runner import Runner
from jaxsparse.training.seeds import Placement, place_runs

CLASSES, SIDE = 3, 5
SMALL = ContinualConfig(
    method="sparse-lamaml",
    stream="permutations",
    tasks=3,
    samples_per_task=12,
    batch_size=4,
    glances=2,
    memories=6,
    replay_batch_size=3,
    width=6,
    inner_lr=0.1,
)
PLAIN = dataclasses.replace(SMALL, method="sgd", glances=1, theta_lr=0.05, clip_norm=None)


def labelled(seed, count):
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    noise = rng.integers(0, 120, size=(count, SIDE, SIDE, 1))
    images = noise + 120 * (labels[:, None, None, None] == np.arange(SIDE)[:, None, None])
    return LabelledSet(images.astype(np.uint8), labels.astype(np.int32), (0.1,), (0.7,), CLASSES)


def seen_rows():
    seen = labelled(0, 4)
    return jnp.asarray(seen.images), jnp.asarray(seen.labels)


@pytest.fixture(scope="module")
def stream():
    return streams.permutations(labelled(0, 60), labelled(1, 40), tasks=3)


@pytest.mark.parametrize(
    ("method", "mask_init"),
    [
        *((method, "auto") for method in META_METHODS),
        ("lamaml", "0.2"),
        ("sparse-lamaml", "0.2"),
        ("er", "auto"),
    ],
)
def test_only_the_named_rates_are_used(method, mask_init):
    """The update from a batch depends on the named rates and on no others."""
    config = dataclasses.replace(SMALL, method=method, mask_init=mask_init)
    learner, rows = make_learner(config, labelled(0, 60)), seen_rows()
    key, row = jax.random.key(0), jax.tree.map(lambda x: x[0], rows)

    @quick_jit
    def learned(rates):
        state, memory = learner.init(key, rates), learner.init_memory(row)
        for step in range(2):
            batch = TaskBatch(rows, 0, True)
            state, memory, _ = learner.learn(
                state, memory, batch, jax.random.fold_in(key, step), rates
            )
        return state.params, getattr(state, "mask", ())

    base = Rates(*map(jnp.float32, (0.1, 0.3, 0.05)))
    start = learned(base)
    for name in Rates._fields:
        moved = learned(base._replace(**{name: 2 * getattr(base, name)}))
        same = all(jax.tree.leaves(jax.tree.map(np.array_equal, start, moved)))
        assert same == (name not in used_rates(config)), name


def rows_of(folder):
    return [{k: v for k, v in row.items() if k != "step"} for row in folder.rows()]


def test_another_number_of_tasks_than_the_streams_is_refused(stream):
    with pytest.raises(ConfigError, match="tasks must be 3, as in the stream, got 2"):
        make_stream(dataclasses.replace(PLAIN, method="gem", tasks=2), stream)


def test_online_sgd_matches_numpy(stream):
    config = dataclasses.replace(PLAIN, init="xavier")
    key = jax.random.key(0)
    got = jax.jit(make_stream(config, stream))(key, stream)

    program = make_program(config, stream)
    rates = Rates(0.0, 0.0, 0.05)
    params = jax.tree.map(
        lambda x: np.asarray(x, np.float64), program.init(key, rates, stream).learner.params
    )
    tasks, indices = (np.asarray(x) for x in program.schedule(key, stream))
    accuracy = [test_accuracies(params, stream)]
    for task in range(3):
        assert (tasks[task] == task).all()
        for start in range(0, 12, 4):
            chosen = indices[task, start : start + 4]
            images = permuted(stream.train.images[chosen], stream.pixel_maps[task])
            sgd_step(params, images, np.asarray(stream.train.labels)[chosen], 0.05)
        accuracy.append(test_accuracies(params, stream))
    np.testing.assert_allclose(got["accuracy"], accuracy, atol=1e-6)
    chex.assert_trees_all_close(got["state"].learner.params, params, atol=1e-5)
    assert np.ptp(accuracy) > 0.2  # otherwise the test would show little


def permuted(images, pixel_map):
    flat = np.asarray(images).reshape(len(images), -1)[:, pixel_map]
    return (flat / 255 - 0.1) / 0.7


def forward(params, x):
    hidden = [x]
    for name in ("dense1", "dense2"):
        hidden.append(np.maximum(hidden[-1] @ params[name]["kernel"] + params[name]["bias"], 0))
    return hidden, hidden[-1] @ params["head"]["kernel"] + params["head"]["bias"]


def sgd_step(params, images, labels, rate):
    hidden, logits = forward(params, images)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    error = (odds / odds.sum(1, keepdims=True) - np.eye(CLASSES)[labels]) / len(labels)
    for x, name in zip(hidden[::-1], ("head", "dense2", "dense1"), strict=True):
        below = (error @ params[name]["kernel"].T) * (x > 0)
        params[name]["kernel"] -= rate * x.T @ error
        params[name]["bias"] -= rate * error.sum(0)
        error = below


def test_accuracies(params, stream):
    labels = np.asarray(stream.test.labels)
    logits = [forward(params, permuted(stream.test.images, m))[1] for m in stream.pixel_maps]
    return [(x.argmax(1) == labels).mean() for x in logits]


test_accuracies.__test__ = False  # a helper, whatever its name says


@pytest.mark.parametrize("method", ["sparse-lamaml", "er", "gem"])
def test_a_run_in_pieces_gives_the_same_bits(stream, method):
    config = dataclasses.replace(SMALL, method=method, epochs=2)
    program, key, rates = make_program(config, stream), jax.random.key(1), Rates(0.1, 1.0, 0.05)
    schedule = program.schedule(key, stream)
    train = jax.jit(program.train)
    start = program.init(key, rates, stream)
    whole = train(start, schedule, key, rates, stream, 17)
    pieces = start
    for steps in (1, 9, 7):
        pieces = train(pieces, schedule, key, rates, stream, steps)
    chex.assert_trees_all_equal(pieces, whole)
    assert int(whole.step) == 17
    # 2 passes of 3 batches a task: 17 steps are 3 tasks but for the last one's last batch, and
    # only rows seen for the first time are stored, whatever the number of glances.
    remembered = whole.memory.age if method != "gem" else whole.memory.written.sum()
    assert int(remembered) == 36


def test_la_maml_as_its_public_code_learns_images():
    config = dataclasses.replace(
        SMALL, method="lamaml", glances=1, inner_batch_size=2, inner_rates="raw",
        inner_clip=0.05, second_order=True, clip_norm=1.0, mask_init="-0.2:0.2", mask_lr=0.3,
    )  # fmt: skip
    rates, key = default_rates(config), jax.random.key(3)
    learner = make_learner(config, labelled(0, 60))
    state = learner.init(key, rates)
    rows = seen_rows()
    memory = learner.init_memory(jax.tree.map(lambda x: x[0], rows))
    batch = TaskBatch(rows, jnp.int32(0), jnp.bool_(True))
    got, _, _ = learner.learn(state, memory, batch, key, rates)

    loss_fn = losses.cross_entropy(make_model(config, labelled(0, 60)))
    step_key = jax.random.split(jax.random.fold_in(key, 0), 3)[1]
    wanted, _ = lamaml_step(
        state, rows, None, step_key, loss_fn=loss_fn, gate=gates.rectified(0.1),
        inner_gate=gates.linear(0.1), mask_optimizer=optax.sgd(0.3), inner_batch_size=2,
        inner_clip=0.05, second_order=True, clip_norm=1.0,
    )  # fmt: skip
    chex.assert_trees_all_close(got.params, wanted.params, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(got.mask, wanted.mask, rtol=1e-5, atol=1e-7)


def test_algorithm_1_as_it_is_printed_can_be_asked_for():
    config = dataclasses.replace(
        SMALL, glances=1, slope=1.0, clip_norm=None, meta_iterates="last", gradient_sum="after"
    )
    rates, key, data = default_rates(config), jax.random.key(3), labelled(0, 60)
    learner, rows = make_learner(config, data), seen_rows()
    state = learner.init(key, rates)
    memory = learner.init_memory(jax.tree.map(lambda x: x[0], rows))
    got, _, _ = learner.learn(state, memory, TaskBatch(rows, 0, True), key, rates)
    step_key = jax.random.split(jax.random.fold_in(key, 0), 3)[1]
    wanted, _ = lamaml_step(
        state, rows, None, step_key, loss_fn=losses.cross_entropy(make_model(config, data)),
        gate=gates.binary(0.1, init=0.1), mask_optimizer=optax.sgd(1.7), clip_norm=None,
        meta_iterates="last", gradient_sum="after",
    )  # fmt: skip
    chex.assert_trees_all_close(got.params, wanted.params, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(got.mask, wanted.mask, rtol=1e-5, atol=1e-7)


def test_mer_on_batches_matches_its_public_code_in_numpy(stream):
    """For each row: passes over it and replayed rows, then the row is offered to the memory."""
    beta, gamma, passes, replayed, slots = 0.3, 0.7, 2, 3, 6
    config = dataclasses.replace(
        PLAIN, method="mer", init="xavier", replay_batch_size=replayed, replay_passes=passes,
        within_rate=beta, across_rate=gamma, memories=slots,
    )  # fmt: skip
    key, rates, program = jax.random.key(0), Rates(0.0, 0.0, 0.05), make_program(config, stream)
    got = quick_jit(make_stream(config, stream))(key, stream)["state"]
    params = program.init(key, rates, stream).learner.params
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    indices = np.asarray(program.schedule(key, stream).indices)
    memory, age = [], 0
    for step in range(9):
        batch_key = jax.random.fold_in(jax.random.fold_in(key, 2), step)
        for place in range(4):
            task, image = step // 3, indices[step // 3, step % 3 * 4 + place]
            row = permuted(stream.train.images[[image]], stream.pixel_maps[task])
            row = row, np.asarray(stream.train.labels)[[image]]
            row_key = jax.random.fold_in(batch_key, place)
            start = jax.tree.map(np.copy, params)
            for pass_key in jax.random.split(jax.random.fold_in(row_key, 0), passes):
                before = jax.tree.map(np.copy, params)
                places = jax.random.randint(pass_key, (replayed,), 0, max(len(memory), 1))
                chosen = [memory[int(at)] for at in places[: len(memory)]]
                for one in (row, *chosen):
                    sgd_step(params, *one, 0.05)
                params = jax.tree.map(lambda a, b: a + beta * (b - a), before, params)
            params = jax.tree.map(lambda a, b: a + gamma * (b - a), start, params)
            age += 1
            at = int(jax.random.randint(jax.random.fold_in(row_key, 1), (1,), 0, age + 1)[0])
            if len(memory) < slots:
                memory.append(row)
            elif at < slots:
                memory[at] = row
    assert int(got.memory.age) == age == 36
    np.testing.assert_array_equal(got.memory.rows[1], [label[0] for _, label in memory])
    chex.assert_trees_all_close(got.learner.params, params, atol=1e-5)
    assert np.abs(params["head"]["kernel"]).max() > 0.1


@pytest.mark.parametrize("method", ["gem", "agem"])
def test_images_kept_of_each_task_can_be_asked_for(stream, method):
    def kept(**changes):
        program = make_program(dataclasses.replace(SMALL, method=method, **changes), stream)
        state = jax.eval_shape(program.init, jax.random.key(0), Rates(0.0, 0.0, 0.1), stream)
        return state.memory.rows[1].shape

    assert kept() == (3, 2)
    assert kept(memory_per_task=5) == kept(memory_per_task=5, memories=1) == (3, 5)


def test_the_memory_holds_what_was_seen(stream):
    config = dataclasses.replace(SMALL, memories=40)
    key = jax.random.key(2)
    state = jax.jit(make_stream(config, stream))(key, stream)["state"]
    images, labels = jax.tree.map(np.asarray, state.memory.rows)
    tasks, indices = make_program(config, stream).schedule(key, stream)
    for task in range(3):
        for start in range(0, 12, 4):
            where = slice(start, start + 4)
            seen, classes = streams.train_rows(stream, tasks[task, where], indices[task, where])
            at = slice(12 * task + start, 12 * task + start + 4)
            kept = {
                (image.tobytes(), int(c)) for image, c in zip(images[at], labels[at], strict=True)
            }
            want = zip(np.asarray(seen), np.asarray(classes), strict=True)
            assert kept == {(image.tobytes(), int(c)) for image, c in want}
    assert int(state.memory.age) == 36


def test_joint_training_mixes_the_tasks(stream):
    config = dataclasses.replace(PLAIN, method="iid")
    tasks, _ = make_program(config, stream).schedule(jax.random.key(0), stream)
    assert all(len(set(row.tolist())) > 1 for row in np.asarray(tasks))
    assert sorted(np.asarray(tasks).ravel().tolist()) == sorted([0, 1, 2] * 12)


def test_the_diagonal_is_that_of_the_whole_matrix(stream):
    whole = jax.jit(make_stream(PLAIN, stream))(jax.random.key(3), stream)["accuracy"]
    config = dataclasses.replace(PLAIN, measure="diagonal")
    part = np.asarray(jax.jit(make_stream(config, stream))(jax.random.key(3), stream)["accuracy"])
    measured = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]], bool)
    assert (np.isnan(part) == ~measured).all()
    np.testing.assert_array_equal(part[measured], np.asarray(whole)[measured])


def test_seeds_together_give_the_results_of_each_alone(stream, tmp_path):
    config = dataclasses.replace(SMALL, method="er", seeds=3, seed=4)
    together = run_stream(config, stream, new_folder(tmp_path / "all"), Hooks())
    for index in (0, 2):
        own = dataclasses.replace(config, seeds=1, seed=4 + index)
        alone = run_stream(own, stream, new_folder(tmp_path / str(index)), Hooks())
        assert alone["seeds"] == [together["seeds"][index]]
    assert together["retained_accuracy"]["std"] > 0
    first, second = (together["seeds"][i]["accuracy"] for i in (0, 1))
    assert first != second


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_devices(stream, tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, method="er", seeds=3)
    whole = run_stream(config, stream, new_folder(tmp_path / "whole"), Hooks())
    folder = new_folder(tmp_path / "moved")

    def on_one(runs):
        return Placement(runs, None)

    for places, allowed, batch in ((place_runs, 2, 1), (on_one, 0, 2), (place_runs, 1, 3)):
        monkeypatch.setattr(run_module, "place_runs", places)
        folder = stop(config, stream, folder, allowed, batch)
    monkeypatch.setattr(run_module, "place_runs", on_one)
    assert run_stream(config, stream, folder, Hooks()) == whole
    assert rows_of(folder) == rows_of(RunFolder.open(tmp_path / "whole", "task"))


def new_folder(path):
    return RunFolder.create(path, {}, "task")


def stop(config, stream, folder, allowed, batch):
    """Stop a run after it was allowed to continue this often: then it is at that batch."""
    asked = iter([False] * allowed + [True])
    with pytest.raises(Stopped, match=f"stopped at batch {batch}$"):
        run_stream(config, stream, folder, Hooks(should_stop=lambda: next(asked)))
    return RunFolder.open(folder.path, "task")


def test_a_resumed_run_ends_like_an_uninterrupted_one(stream, tmp_path):
    config = dataclasses.replace(SMALL, method="er")
    whole = run_stream(config, stream, new_folder(tmp_path / "whole"), Hooks())
    folder = new_folder(tmp_path / "stopped")
    # Before the first task, within it, at its end but not measured, being measured, in the next.
    for allowed, batch in ((1, 0), (3, 1), (1, 3), (1, 3), (3, 4)):
        folder = stop(config, stream, folder, allowed, batch)
    assert run_stream(config, stream, folder, Hooks()) == whole
    assert rows_of(folder) == rows_of(RunFolder.open(tmp_path / "whole", "task"))


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(stream, tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, method="sgd", glances=1)

    def end(self):
        raise InterruptedError

    folder = new_folder(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(Runner, "save", end)
        run_stream(config, stream, folder, Hooks())
    assert [row["task"] for row in folder.rows()] == [0]
    folder = RunFolder.open(folder.path, "task")
    run_stream(config, stream, folder, Hooks())
    assert [row["task"] for row in folder.rows()] == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_infinite_weights_end_the_run(stream, tmp_path):
    """The only update has a finite loss, but gives infinite weights."""
    config = dataclasses.replace(
        PLAIN, samples_per_task=4, theta_lr=1e39, clip_norm=None, seeds=2, seed=3
    )
    folder = new_folder(tmp_path / "run")
    with pytest.raises(Diverged, match=r"on the test images is not finite with seed 3 after batch"):
        run_stream(config, stream, folder, Hooks())
    assert [row["task"] for row in folder.rows()] == [0]
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["1"]
    assert folder.result() is None


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_point_of_a_scan_that_diverges_retains_nothing(stream, tmp_path):
    config = dataclasses.replace(PLAIN, validation=True)
    grid = [Rates(0.1, 1.0, 0.05), Rates(0.1, 1.0, 1e39)]
    folder = new_folder(tmp_path / "scan")
    with pytest.warns(match="null for non-finite numbers"):
        points = scan_stream(config, grid, stream, folder, Hooks())["points"]
    good, bad = (point["retained_accuracy"]["mean"] for point in points)
    assert good > 0.3 and bad == 0


@pytest.mark.parametrize("method", ["er", pytest.param("sparse-lamaml", marks=pytest.mark.slow)])
def test_rows_without_a_checkpoint_are_not_dropped(stream, tmp_path, method):
    config = dataclasses.replace(SMALL, method=method)
    folder = new_folder(tmp_path / "run")

    def end(row):
        if row["task"] == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_stream(config, stream, folder, Hooks(row=end))
    rows = folder.rows()
    shutil.rmtree(folder.path / "checkpoints")
    for _ in range(2):
        with pytest.raises(RunError, match="has the metrics of task 1 and no checkpoint"):
            run_stream(config, stream, folder, Hooks())
        assert folder.rows() == rows


def test_a_scan_gives_each_point_the_result_of_its_run(stream, tmp_path):
    config = dataclasses.replace(SMALL, validation=True)
    grid = [Rates(0.1, 1.7, 0.1), Rates(0.3, 0.5, 0.1)]
    points = scan_stream(config, grid, stream, new_folder(tmp_path / "scan"), Hooks())["points"]
    for rates, point in zip(grid, points, strict=True):
        assert {name: point[name] for name in Rates._fields} == pytest.approx(rates._asdict())
    own = dataclasses.replace(config, inner_lr=0.3, mask_lr=0.5)
    alone = run_stream(own, stream, new_folder(tmp_path / "alone"), Hooks())
    assert points[1]["retained_accuracy"] == alone["retained_accuracy"]
    assert points[0]["retained_accuracy"] != points[1]["retained_accuracy"]
    with pytest.raises(ConfigError, match="validation must be set"):
        scan_stream(SMALL, grid, stream, new_folder(tmp_path / "test"), Hooks())


FLAGS = ["--data", "glyphs", "--tasks", "2", "--samples-per-task", "40", "--glances", "1"]


def run_command(*flags):
    continual.main([*FLAGS, *map(str, flags)])


def test_the_command_on_embedded_digits(tmp_path, capsys):
    out = tmp_path / "run"
    run_command("--stream", "rotations", "--width", 8, "--out", out)
    printed = capsys.readouterr().out
    assert "sparse-lamaml on rotations" in printed and "sparsity of dense1/kernel" in printed
    result = json.loads((out / "result.json").read_text())
    (seed,) = result["seeds"]
    R = np.array(seed["accuracy"])
    assert R.shape == (2, 2)
    assert seed["retained_accuracy"] == pytest.approx(R[-1].mean())
    assert seed["learning_accuracy"] == pytest.approx((R[0, 0] + R[1, 1]) / 2)
    for name in ("accuracy.png", "matrix.png", "sparsity.png", "config.json", "metrics.jsonl"):
        assert (out / name).stat().st_size > 0
    before = (out / "result.json").read_bytes()
    continual.main(["--resume", str(out)])  # finished: only shown again
    assert "sparse-lamaml on rotations" in capsys.readouterr().out
    assert (out / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--memories", "0"], "memories must be 1 or more, got 0"),
        (["--batch-size", "50"], "batch_size must be at most samples_per_task 40, got 50"),
        (["--batch-size", "7"], "batch_size must divide samples_per_task 40, got 7"),
        (["--samples-per-task", "999990"], "must be at most 6000"),
        (["--inner-lr", "-1"], "inner_lr must be 0 or more, got -1.0"),
        (["--inner-clip", "0"], "inner_clip must be above 0, got 0.0"),
        (["--inner-rates", "both"], "error: invalid choice 'both' for argument"),
        (["--inner-batch-size", "3"], "inner_batch_size must divide batch_size 10, got 3"),
        (["--method", "gem", "--memories", "1"], "at least 1 for each of 2 tasks with gem"),
        (["--method", "er", "--memory-per-task", "5"], "memory_per_task must be none with er"),
        (["--method", "gem", "--memory-per-task", "0"], "memory_per_task must be 1 or more, got 0"),
        (["--gradient-sum", "at"], "error: invalid choice 'at' for argument"),
        (
            ["--gradient-sum", "after", "--second-order"],
            "gradient_sum must be before with second_order, got after",
        ),
        (["--method", "magic"], "method must be one of sparse-lamaml, lamaml"),
        (["--stream", "split-cifar10"], "tasks must be 5"),
        (["--augment"], "augment needs images with 3 channels"),
        (["--data", "mnist", "--data-dir", "/nowhere"], "/nowhere"),
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


def test_absent_data_says_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_command("--data", "mnist", "--data-dir", tmp_path)
    assert "download_and_prepare" in capsys.readouterr().err


def test_the_help_lists_what_a_method_sets(capsys):
    with pytest.raises(SystemExit) as stopped:
        continual.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out.split("what --stream and --method set")[1]
    lines = dict(line.strip().split(": ", 1) for line in text.splitlines()[1:12])
    assert list(lines)[:2] == ["rotations", "sparse-lamaml"]
    for method, flags in list(lines.items())[1:]:
        preset = preset_config("rotations", method)
        # With the method's name the flags change nothing, because the method sets the same values.
        opened = open_run(continual, [f"--method={method}", *flags.split()])
        assert opened.config == preset
