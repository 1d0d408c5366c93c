"""The few-shot experiment: whole runs, resumed runs, bad input."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from processes import finish, kill, kill_at_random, outcome, start

from experiments import fewshot
from experiments.fewshot import presets
from jaxsparse import data as data_module
from jaxsparse import nn, training
from jaxsparse.nn import native
from jaxsparse.training import runner as runner_module
from jaxsparse.training.fewshot import result as result_module
from jaxsparse.training.fewshot.evaluation import Measurement

CLASSES, IMAGES = 3, 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A tree of class folders: each class has its own grey level, with noise."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label in range(CLASSES):
            folder = root / split / f"{split}{label}"
            folder.mkdir(parents=True)
            for index in range(IMAGES):
                noise = rng.integers(0, 60, (16, 16), dtype=np.uint8)
                Image.fromarray(noise + np.uint8(60 * label)).save(folder / f"{index}.png")
    return root


@pytest.fixture
def flags(images, tmp_path):
    """The flags of a run that takes a second, without compilation."""
    return [
        *("--dataset=folder", f"--data-dir={images}", "--image-size=16", f"--out={tmp_path}/run"),
        *("--ways=2", "--shots=1", "--query-shots=2", "--width=2", "--meta-batch-size=2"),
        *("--inner-steps=1", "--test-inner-steps=2", "--epochs=3", "--steps-per-epoch=4"),
        *("--val-tasks=5", "--test-tasks=25"),
    ]


@pytest.fixture(autouse=True)
def no_signal_handlers(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


@pytest.fixture
def small_network(monkeypatch, quick_programs):
    """A network with one convolution, which compiles in a third of the time."""
    monkeypatch.setattr(nn, "conv4", small_model)


def small_model(ways, width, image_shape, use_bias, blocks):
    return nn.strided_cnn(ways, width, 1, (), image_shape)


def read_config(run: Path):
    return training.FewShotConfig(**json.loads((run / "config.json").read_text())["config"])


def splits(config):
    return {
        split: data_module.load(
            config.dataset, split, data_dir=config.data_dir, image_size=config.image_size
        )
        for split in ("train", "validation", "test")
    }


def test_a_run_writes_its_files(flags, tmp_path, capsys):
    fewshot.main(flags)
    run = tmp_path / "run"
    rows, result, _ = outcome(run)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    for name in ("curves.png", "sparsity.png"):
        with Image.open(run / name) as figure:
            assert figure.size[0] > 600
    assert list(run.glob("events*"))
    (seed,) = result["seeds"]
    assert result["test_tasks"] == 25 and seed["best_epoch"] in (1, 2, 3)
    assert seed["best_val_accuracy"] == max(row["val_accuracy"] for row in rows[1:])
    assert seed["sparsity"] == rows[seed["best_epoch"]]["sparsity"]
    printed = capsys.readouterr().out
    assert "conv1/kernel" in printed and f"{100 * result['accuracy']:.2f}%" in printed
    # A finished run is reported again, not repeated; figures it lacks are drawn.
    (run / "sparsity.png").unlink()
    fewshot.main([f"--resume={run}"])
    assert (run / "sparsity.png").exists()
    assert f"{100 * result['accuracy']:.2f}%" in capsys.readouterr().out


def test_the_interval_is_the_normal_one_over_tasks():
    accuracy = np.array([[0.5, 1.0, 0.75, 0.75]])
    state = training.make_program(training.FewShotConfig(width=1), (16, 16, 1)).init(
        jax.random.key(0)
    )
    state = jax.tree.map(lambda x: x[None], state)
    metrics = {"accuracy": accuracy, "loss": accuracy}
    result = result_module.make_result(training.FewShotConfig(), [{"sparsity": {}}], state, metrics)
    # By hand: variance (0.0625 + 0.0625) / 3, standard error sqrt(0.125 / 3 / 4).
    assert result["seeds"][0]["interval95"] == pytest.approx(1.96 * 0.1020620726)
    assert result["accuracy"] == 0.75


# The others are among the slow tests; each compiles for ten seconds.
QUICK = ("sparse-maml", "sparse-maml-plus", "anil", "meta-sgd")
METHODS = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in training.fewshot.config.Method.__args__
]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_only_its_parameters(method, flags, small_network, tmp_path):
    short = ["--embedding=8"] if method == "sparse-maml-plus" else []
    fewshot.main([*flags, f"--method={method}", "--epochs=1", *short])
    rows, _, _ = outcome(tmp_path / "run")
    sparsity = rows[-1]["sparsity"]
    expected = {"fomaml": 0.0, "maml": 0.0, "meta-sgd": 0.0, "sparse-relu-maml": 0.0}
    if method in expected:
        assert sparsity["total"] == expected[method]
    elif method == "anil":
        assert sparsity["head/kernel"] == 0 and sparsity["conv1/kernel"] == 1
    elif method == "boil":
        assert sparsity["head/kernel"] == 1 and sparsity["conv1/kernel"] == 0
    else:
        assert 0.1 < sparsity["total"] < 0.9


def test_the_seed_determines_the_run(flags, small_network, tmp_path):
    outcomes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fewshot.main([*flags, f"--out={tmp_path / name}", f"--seed={seed}"])
        outcomes.append(outcome(tmp_path / name))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] != outcomes[2][0]


@pytest.mark.parametrize("name, wanted", [("float32", "HIGHEST"), ("tensorfloat32", "HIGH")])
def test_a_run_has_the_precision_of_its_configuration(name, wanted):
    config = training.FewShotConfig(ways=2, shots=1, query_shots=2, width=1, precision=name)
    program = training.make_program(config, (16, 16, 1))
    key = jax.random.key(0)
    images = jax.ShapeDtypeStruct((3, 4, 16, 16, 1), np.uint8)
    counts = jax.ShapeDtypeStruct((3,), np.int32)
    data = data_module.ImageSet(images, counts, ("a", "b", "c"), (0.0,), (1.0,))
    state, tasks = jax.eval_shape(program.init, key), jax.eval_shape(program.tasks, key, data)
    learned = state.meta.params, state.meta.mask
    with jax.default_matmul_precision("bfloat16"):  # the configuration decides, not this
        texts = (
            jax.jit(program.train).lower(state, key, data, 1).as_text(),
            jax.jit(program.evaluate).lower(*learned, key, tasks).as_text(),
        )
    for text in texts:
        assert set(re.findall(r"precision = \[(\w+), (\w+)\]", text)) == {(wanted, wanted)}


def test_a_run_without_a_new_setting_resumes_with_its_default(flags, small_network, tmp_path):
    fewshot.main(flags)
    run = tmp_path / "run"
    whole = outcome(run)
    record = json.loads((run / "config.json").read_text())
    del record["config"]["precision"]
    (run / "config.json").write_text(json.dumps(record))
    for name in ("3", "4"):
        shutil.rmtree(run / "checkpoints" / name)
    (run / "result.json").unlink()
    fewshot.main([f"--resume={run}"])
    assert outcome(run) == whole


def test_seeds_together_give_the_results_of_each_alone(flags, small_network, tmp_path):
    fewshot.main([*flags, "--seeds=2", "--seed=3"])
    fewshot.main([*flags, "--seed=4", f"--out={tmp_path / 'alone'}"])
    together, alone = outcome(tmp_path / "run")[0], outcome(tmp_path / "alone")[0]
    for pair, one in zip(together[1:], alone[1:], strict=True):
        assert pair["loss"][1] == pytest.approx(one["loss"], rel=1e-4)
        assert pair["sparsity"]["total"][1] == pytest.approx(one["sparsity"]["total"], abs=0.02)


@pytest.mark.parametrize(
    "segments", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 3, 14))]
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    segments, flags, small_network, tmp_path, monkeypatch
):
    monkeypatch.setattr(runner_module, "SEGMENT_SECONDS", 1e-9)  # a segment is one meta-step
    fewshot.main([*flags, f"--out={tmp_path / 'whole'}"])
    config = read_config(tmp_path / "whole")
    asked = iter(range(1000))
    hooks = training.Hooks(should_stop=lambda: next(asked) >= segments)
    folder = training.RunFolder.create(
        tmp_path / "run", json.loads((tmp_path / "whole" / "config.json").read_text())
    )
    with pytest.raises(training.Stopped):
        training.run(config, splits(config), folder, hooks)
    fewshot.main([f"--resume={tmp_path / 'run'}"])
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_damaged_checkpoint_does_not_change_the_result(flags, small_network, tmp_path, capsys):
    fewshot.main(flags)
    whole = outcome(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda p: int(p.name))
    for file in (p for p in newest.rglob("*") if p.is_file()):
        file.write_bytes(b"")
    fewshot.main([f"--resume={tmp_path / 'run'}"])
    assert "warning: checkpoint 4" in capsys.readouterr().err
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
def test_the_pure_program_trains_like_the_loop(flags, small_network, tmp_path):
    fewshot.main(flags)
    rows, result, _ = outcome(tmp_path / "run")
    config = read_config(tmp_path / "run")
    pure = jax.jit(training.make_train(config, splits(config)))(jax.random.key(config.seed))
    np.testing.assert_allclose(pure["epochs"]["loss"], [row["loss"] for row in rows[1:]], rtol=1e-4)
    assert pure["test"]["accuracy"].shape == (25,)
    assert float(pure["test"]["accuracy"].mean()) == pytest.approx(result["accuracy"], abs=0.02)


def test_a_loss_that_is_not_finite_stops_the_run(flags, small_network, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        fewshot.main([*flags, "--theta-lr=1e38", "--epochs=2"])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed 0" in line and "meta-step 1" in line


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(flags, small_network, tmp_path):
    fewshot.main([*flags, "--epochs=1"])
    good = outcome(tmp_path / "run")[2]
    config = read_config(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    diverging = training.FewShotConfig(**{**vars(config), "theta_lr": 1e38, "epochs": 2})
    folder = training.RunFolder.open(tmp_path / "run")
    with pytest.raises(training.Diverged, match="meta-step 5"):
        training.run(diverging, splits(config), folder, training.Hooks())
    assert outcome(tmp_path / "run")[2] == good


def test_a_validation_loss_that_is_not_finite_stops_the_run(
    flags, small_network, tmp_path, monkeypatch, capsys
):
    evaluate, validations = Measurement.batch, []

    def spoilt(self, split, *args):
        metrics = evaluate(self, split, *args)
        validations.append(split)
        if split == "validation" and len(validations) == 2:
            metrics["loss"] = np.array(metrics["loss"])
            metrics["loss"][1, 2] = np.inf
        return metrics

    monkeypatch.setattr(Measurement, "batch", spoilt)
    with pytest.raises(SystemExit) as stop:
        fewshot.main([*flags, "--seeds=2", "--seed=5"])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the validation loss is not finite with seed 6 after meta-step 8" in line
    assert not (tmp_path / "run" / "result.json").exists()
    assert [row["epoch"] for row in training.RunFolder.open(tmp_path / "run").rows()] == [0, 1]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_nothing_that_is_not_finite_is_saved(flags, small_network, tmp_path, capsys):
    """The only update has a finite loss, but gives infinite weights."""
    with pytest.raises(SystemExit) as stop:
        fewshot.main([*flags, "--theta-lr=1e39", "--epochs=1", "--steps-per-epoch=1"])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not finite with seed 0 after meta-step 1" in line
    assert not (tmp_path / "run" / "checkpoints").exists()


# ---- going on elsewhere


def unfinished(run):
    """Turn a finished run into one whose last checkpoint is that of its second epoch."""
    numbers = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    shutil.rmtree(run / "checkpoints" / str(numbers[-1]))
    (run / "result.json").unlink()


def refused(capsys, args):
    """The one line with which a command ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        fewshot.main(list(map(str, args)))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def everything(run):
    ours = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): path.read_bytes() for path in ours}


@pytest.mark.parametrize(
    ("elsewhere", "named", "kept"),
    [
        (lambda: jax.default_prng_impl("rbg"), "jax_default_prng_impl threefry2x32", True),
        (lambda: jax.enable_x64(True), "jax_enable_x64 False", True),
        (lambda: jax.threefry_partitionable(False), "jax_threefry_partitionable True", True),
        (lambda: jax.default_prng_impl("rbg"), "", False),
    ],
)
def test_a_run_is_not_resumed_if_its_numbers_would_change(
    elsewhere, named, kept, flags, small_network, tmp_path, capsys
):
    fewshot.main(flags)
    run = tmp_path / "run"
    whole = outcome(run)
    unfinished(run)
    record = run / "config.json"
    if not kept:  # as earlier versions wrote it
        text = record.read_text()
        record.write_text(json.dumps({"config": json.loads(text)["config"]}))
    before = everything(run)
    with elsewhere():
        if kept:
            line = refused(capsys, [f"--resume={run}"])
            assert named in line and "set JAX_" in line
        else:
            assert "want" in refused(capsys, [f"--resume={run}"])
        assert everything(run) == before
    fewshot.main([f"--resume={run}"])
    assert outcome(run) == whole


def test_a_machine_that_gives_other_bits_is_reported(flags, small_network, tmp_path, capsys):
    fewshot.main(flags)
    run = tmp_path / "run"
    unfinished(run)
    record = json.loads((run / "config.json").read_text())
    record["versions"]["jax"] = "0.9.9"
    record["environment"]["threads"] = 977
    (run / "config.json").write_text(json.dumps(record))
    capsys.readouterr()
    fewshot.main([f"--resume={run}"])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "is resumed with" in x]
    assert "jax" in line and "(started with 0.9.9)" in line and "(started with 977)" in line
    assert "device" not in line.split("is resumed with")[1].split(":")[0].replace("devices", "")


def test_a_run_with_rows_and_no_checkpoint_is_left_alone(flags, small_network, tmp_path, capsys):
    fewshot.main(flags)
    run = tmp_path / "run"
    unfinished(run)
    shutil.rmtree(run / "checkpoints")
    before = everything(run)
    for _ in range(2):
        line = refused(capsys, [f"--resume={run}"])
        assert "has the metrics of epoch 3 and no checkpoint" in line
        assert everything(run) == before


@pytest.mark.slow
def test_moved_data_is_reported_and_compared(
    images, flags, small_network, tmp_path, monkeypatch, capsys
):
    (tmp_path / "home").mkdir()
    shutil.copytree(images, tmp_path / "home" / "data")
    monkeypatch.chdir(tmp_path / "home")
    fewshot.main([*flags, "--data-dir=data"])
    run = tmp_path / "run"
    whole = outcome(run)
    unfinished(run)
    monkeypatch.chdir(tmp_path)  # found from any folder
    fewshot.main([f"--resume={run}"])
    assert outcome(run) == whole
    unfinished(run)
    (tmp_path / "home" / "data").rename(tmp_path / "moved")
    line = refused(capsys, [f"--resume={run}"])
    assert str(tmp_path / "home" / "data") in line and "--data-dir" in line
    shutil.copytree(tmp_path / "moved", tmp_path / "other")
    changed = min((tmp_path / "other" / "train").rglob("*.png"))
    with Image.open(changed) as image:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(changed)
    before = everything(run)
    line = refused(capsys, [f"--resume={run}", "--data-dir=other"])
    assert "--data-dir" in line and "other data" in line
    assert everything(run) == before
    fewshot.main([f"--resume={run}", "--data-dir=moved"])
    assert outcome(run) == whole


@pytest.mark.slow
def test_a_run_resumes_in_a_folder_named_like_a_pattern(flags, small_network, tmp_path):
    out = [f"--out={tmp_path / 'run[1]*{a,b}?'}"]
    fewshot.main([*flags, *out])
    run = tmp_path / "run[1]*{a,b}?"
    whole = outcome(run)
    unfinished(run)
    fewshot.main([f"--resume={run}"])
    assert outcome(run) == whole


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 2**31}, "seeds must be at most 2147483647 from seed 0, got 2147483648"),
        (
            {"seed": 2**31 - 2, "seeds": 2},
            "seeds must be at most 1 from seed 2147483646, got 2",
        ),
        ({"seed": 2**31}, r"seed must lie in \[0, 2\^31 - 2\], got 2147483648"),
        ({"seed": -1}, r"seed must lie in \[0, 2\^31 - 2\], got -1"),
        ({"theta_lr": float("nan")}, "theta_lr must be finite, got nan"),
        ({"mask_lr": float("inf")}, "mask_lr must be finite, got inf"),
        ({"inner_lr": float("-inf")}, "inner_lr must be 0 or more, got -inf"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_value(given, message):
    with pytest.raises(training.ConfigError, match=f"^{message}$"):
        training.FewShotConfig(**given)


BAD = {
    "unknown method": (["--method=magic"], "'magic'"),
    "unknown dataset": (["--dataset=imagenet"], "'imagenet'"),
    "unknown flag": (["--shoots=5"], "--shoots"),
    "no number": (["--shots=many"], "'many'"),
    "unknown preset": (["--preset=best"], "preset must be one of glyphs"),
    "negative": (["--inner-lr=-1"], "inner_lr must be 0 or more"),
    "no tasks": (["--meta-batch-size=0"], "meta_batch_size must be 1 or more"),
    "sparsity": (["--initial-sparsity=2"], "initial_sparsity must lie in [0, 1]"),
    "precision": (["--precision=float8"], "'float8'"),
    "mask init": (["--mask-init=xavier"], "mask_init must be kaiming"),
    "ways above the classes": (["--ways=4"], "ways"),
    "shots above the images": (["--shots=3"], "class"),
    "no such folder": (["--data-dir=/nowhere"], "/nowhere"),
    "images too small": (["--image-size=8"], "8"),
    "no run to resume": (["--resume=/nowhere"], "/nowhere holds no run"),
    "address": (["--out=gs://bucket/run"], "--out: gs:/bucket/run is a URL"),
    "address of a file": (["--out=file:///tmp/run"], "is a URL, want a folder"),
    "place that cannot be written": (["--out=/proc/run"], "cannot write to /proc/run"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, flags, capsys):
    extra, expected = BAD[case]
    with pytest.raises(SystemExit) as stop:
        fewshot.main([*flags, *extra])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_data_that_is_not_prepared_says_where_it_looked(tmp_path, capsys):
    for dataset in ("omniglot", "mini_imagenet"):
        with pytest.raises(SystemExit) as stop:
            fewshot.main([f"--dataset={dataset}", f"--data-dir={tmp_path}"])
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(tmp_path) in line


def test_a_broken_image_is_named(images, flags, tmp_path, capsys):
    broken = tmp_path / "images"
    subprocess.run(["cp", "-r", images, broken], check=True)
    (broken / "test" / "test1" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(SystemExit) as stop:
        fewshot.main([*flags, f"--data-dir={broken}"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "test/test1/2.png" in line
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_run_is_left_alone(flags, small_network, tmp_path, capsys):
    fewshot.main([*flags, "--epochs=1"])
    run = tmp_path / "run"
    before = outcome(run)
    for args, expected in (
        (flags, "holds another run"),
        (
            [f"--resume={tmp_path / 'run'}", "--shots=2", "--theta-lr=0.5"],
            "shots 2 (the run has 1)",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            fewshot.main(args)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line
    assert "theta_lr 0.5" in line
    assert outcome(run) == before


def test_help_lists_the_presets_in_full(capsys):
    with pytest.raises(SystemExit) as stop:
        fewshot.main(["--help"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    for name in presets.PRESETS:
        assert f"{name}, 5-shot: --dataset=" in printed
    assert "--inner-steps=35" in printed and "--test-inner-steps=100" in printed


def test_presets_are_table_s2():
    five = presets.preset_config("table-s2", None, "sparse-maml", 5)
    assert (five.inner_steps, five.test_inner_steps, five.inner_lr) == (35, 100, 0.25)
    assert (five.theta_lr, five.mask_lr, five.meta_batch_size) == (0.001, 0.0075, 2)
    assert (five.epochs, five.steps_per_epoch, five.width) == (400, 100, 64)
    one = presets.preset_config("table-s2", None, "sparse-maml", 1)
    assert one.meta_batch_size == 4
    assert presets.preset_config("table-s2", None, "sparse-relu-maml", 5).inner_lr == 0.1
    assert presets.preset_config("table-s2", None, "sparse-relu-maml", 1).inner_lr == 0.25
    plus = presets.preset_config("table-s2", None, "sparse-maml-plus", 1)
    assert (plus.epochs, plus.mask_optimizer, plus.inner_lr) == (600, "nesterov", 0.1)


# ---- killed processes


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_leaves_with_one_line(number, flags, tmp_path):
    run = tmp_path / "run"
    native.available()  # compiling it would be another line
    process = start("fewshot", [*flags, "--epochs=100000"])
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (line,) = errors.splitlines()
    assert f"--resume {run}" in line and "saved" in line
    assert list((run / "checkpoints").iterdir())


@pytest.mark.slow
def test_killed_twenty_times_the_run_ends_the_same(flags, tmp_path):
    longer, run = [*flags, "--epochs=60", "--steps-per-epoch=20"], tmp_path / "run"
    finish("fewshot", [*longer, f"--out={tmp_path / 'whole'}"])
    kill_at_random("fewshot", longer, run, kills=20, longest=12.0)
    finish("fewshot", [f"--resume={run}"])
    assert outcome(run) == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_ends_like_an_uninterrupted_one(flags, tmp_path):
    finish("fewshot", [*flags, f"--out={tmp_path / 'whole'}"])
    run = tmp_path / "run"
    process = start("fewshot", flags)
    while not list(run.glob("checkpoints/*")) and process.poll() is None:
        time.sleep(0.01)
    kill(process)
    finish("fewshot", [f"--resume={run}"])
    assert outcome(run) == outcome(tmp_path / "whole")
