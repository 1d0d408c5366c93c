"""The checks and timings for a day with a GPU, tried on the CPU."""

import dataclasses
import json
import os
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse.training
from benchmarks import gpu_checks, gpu_resume, pictures
from benchmarks.gpu_program import cases, command, timing
from jaxsparse import data, nn
from jaxsparse.lamaml import LaMAMLState
from jaxsparse.training import Progress, Stopped

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
PRODUCT = Path(__file__).parent / "gpu_programs" / "product.txt"


@pytest.fixture(autouse=True)
def no_blocks(monkeypatch):
    """Compiling the blocks in C++ would take longer than the tests, which do not use them."""
    monkeypatch.setattr("jaxsparse.nn.native.available", lambda: False)


# ---- the checks


def test_differences_by_hand():
    got, want = [np.array([3.0, 4.0]), np.array([[1.0]])], [np.array([3.0, 0.0]), np.array([[4.0]])]
    row = gpu_checks.row("a", "b", got, want, limit=1.0)
    # Differences 0, 4, -3; |difference| = |want| = 5.
    assert (row["largest"], row["relative"], row["ok"]) == (4.0, 1.0, True)
    assert not gpu_checks.row("a", "b", got, want, limit=0.9)["ok"]
    assert not gpu_checks.row("a", "b", [np.array([np.nan])], [np.array([1.0])])["ok"]
    assert gpu_checks.row("a", "b", got, want, limit=None)["ok"]


def test_the_outcome_has_what_changes():
    before = LaMAMLState({"w": jnp.ones(2)}, jnp.zeros(2), (), (), jnp.int32(0))
    after = before._replace(params={"w": jnp.array([1.0, 3.0])}, step=jnp.int32(1))
    found = gpu_checks.outcome(before, after, {"loss": jnp.float32(0.5)})
    assert list(found) == ["change of params", "loss"]
    np.testing.assert_array_equal(found["change of params"][0], [0.0, 2.0])


@pytest.fixture
def small_network(monkeypatch):
    """One convolution, which compiles in a third of the time of Conv4."""
    conv = lambda ways, width, image, *_, **__: nn.strided_cnn(ways, width, 1, (), image)  # noqa: E731
    monkeypatch.setattr(nn, "conv4", conv)


def checked(tmp_path, *names):
    """The arrays that were compared, by check, and the table."""
    gpu_checks.main(["--platform=cpu", "--tiny", f"--out={tmp_path}", "--checks", *names])
    arrays = {}
    for row in json.loads((tmp_path / "checks.json").read_text())["rows"]:
        assert row["ok"] and row["relative"] < 1e-4
        arrays.setdefault(row["check"], []).append(row["array"])
    return arrays, (tmp_path / "checks.md").read_text()


@pytest.mark.slow
def test_the_command_compares_steps(small_network, tmp_path, capsys):
    arrays, table = checked(tmp_path, "few-shot fomaml", "continual lamaml")
    assert arrays == {
        "continual lamaml": ["change of params", "change of mask", "accuracy", "loss"],
        "few-shot fomaml": ["change of params", "accuracy", "inner_loss", "loss", "sparsity"],
    }
    assert "| few-shot fomaml | inner_loss |" in table


@pytest.mark.slow
def test_the_command_compares_timesteps_and_runs(small_network, tmp_path, capsys):
    arrays, table = checked(tmp_path, "online cmaml", "stopped")
    assert arrays.keys() == {"online cmaml", "run twice", "stopped and resumed"}
    assert arrays["stopped and resumed"] == arrays["run twice"] == ["loss", "params", "mask"]
    assert {"change of params", "change of mask", "loss"} <= {*arrays["online cmaml"]}
    assert "| stopped and resumed | params |" in table


def test_a_difference_is_status_1_and_the_table_is_written(monkeypatch, tmp_path, capsys):
    def make(task_loop):
        factor = 2.0 if task_loop == "vmap" else 1.0
        state = LaMAMLState(jnp.ones(2), jnp.zeros(2), (), (), jnp.int32(0))
        step = lambda state: (state._replace(params=factor * jnp.arange(2.0)), {})  # noqa: E731
        return cases.Made(step, lambda key: (state,))

    monkeypatch.setattr(gpu_checks, "all_checks", lambda tiny: [gpu_checks.Check("odd", make)])
    with pytest.raises(SystemExit) as stop:
        gpu_checks.main(["--platform=cpu", f"--out={tmp_path}", "--checks=odd"])
    assert stop.value.code == 1
    assert "error: the devices differ in: odd" in capsys.readouterr().err
    assert "DIFFERS" in (tmp_path / "checks.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--platform=cpu", "--checks=conv5"], "--checks conv5: the checks are stopped"),
        (["--platform=tpu"], "--platform"),
    ],
)
def test_a_bad_flag_of_the_checks_is_status_2(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu_checks.main(flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_every_few_shot_method_is_checked_with_its_own_learner(monkeypatch):
    methods = []
    make_learner = jaxsparse.training.make_learner
    monkeypatch.setattr(
        jaxsparse.training,
        "make_learner",
        lambda config, image: methods.append(config.method) or make_learner(config, image),
    )
    names = [check.name for check in gpu_checks.all_checks(tiny=True)]
    assert [name for name in names if name.startswith("few-shot")] == [
        f"few-shot {method}" for method in methods
    ]
    assert len(set(methods)) == 8


# ---- timings


def tiny_case(**changes):
    made = cases.Made(lambda x, y: x @ y, lambda key: (jnp.ones((8, 16)), jnp.ones((16, 4))))
    case = cases.Case("tiny", "products", "product", 1, lambda loop: made)
    return dataclasses.replace(case, **changes)


def test_a_case_is_timed(monkeypatch):
    ticks = iter([0.0, 1.0, 2.0, 9.0, 10.0, 10.002, 20.0, 20.004, 30.0, 30.003])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    entry = timing.time_case(tiny_case(), "auto", "float32", repeats=3)
    # The compilation takes the first two ticks, the call to warm up the next two.
    assert entry["compile_s"] == 1.0
    assert entry["measured_ms"] == pytest.approx(3.0)
    assert "bound_ms" not in entry  # on the CPU


def test_too_little_memory_is_a_note(monkeypatch):
    def make(loop):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED:\n out of memory")

    entry = timing.time_case(tiny_case(make=make), "auto", "float32", repeats=1)
    (section,) = timing.sections([entry])
    assert section.rows == []
    assert section.notes == ["tiny: not measured: RESOURCE_EXHAUSTED: out of memory."]


class Compiled:
    def __init__(self, text):
        self.as_text = lambda: text


def test_the_bound_is_that_of_the_program_that_ran(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    bound = timing._bound(tiny_case(), Compiled(PRODUCT.read_text()), "float32")
    assert (bound["kernels"], bound["bound_ms"]) == (1, pytest.approx(2.5e-3, rel=0.1))
    assert "ValueError" in timing._bound(tiny_case(), Compiled("HLO"), "float32")["bound_failed"]
    entry = {"name": "a", "group": "g", "unit": "u", "task_loop": 4, "precision": "float32"}
    entry |= {"measured_ms": 1.0, "bound_ms": 0.5, "kernels": 3, "temp_bytes": 2e6}
    (section,) = timing.sections([entry | {"compile_s": 7.0}])
    assert section.rows == [["a, 4 at once", "1", "0.5", "2.00", "3", "2", "7.0"]]


def test_the_arguments_of_a_program_are_random_and_have_its_shapes():
    made = cases.glance(
        dataclasses.replace(cases.continual_preset("rotations", "sparse-lamaml"), width=4),
        (28, 28, 1), seeds=2,
    )  # fmt: skip
    args = jax.jit(made.draw)(jax.random.key(0))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), args)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), made.shapes())
    images, labels = args[2].rows
    assert images.shape == (2, 10, 28, 28, 1) and np.std(images[0] - images[1]) > 10
    np.testing.assert_array_equal(labels[0], np.arange(10))


def test_measured_cases_join_those_in_the_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cases, "all_cases", lambda: {"tiny": tiny_case()})
    for precision in ("float32", "tensorfloat32"):
        flags = ["--measure", "--platform=cpu", "--repeats=1", f"--precision={precision}"]
        command.main([*flags, f"--out={tmp_path}"])
    stored = json.loads((tmp_path / "measured.json").read_text())["cases"]
    assert list(stored) == ["tiny", "tiny, tensorfloat32"]
    assert "| tiny, tensorfloat32 |" in (tmp_path / "measured.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--measure", "--platform=cpu", "--cases=table-s2"], "--measure cannot time a whole run"),
        (["--measure", "--platform=cpu", "--repeats=0"], "--repeats must be at least 1"),
        (["--task-loop=0"], "--task-loop must be at least 1, got 0"),
    ],
)
def test_a_bad_flag_of_the_timings_is_status_2(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# ---- the run and the pictures


@pytest.mark.parametrize("epochs", [(0, 0, 1), (0, 0, 0)])
def test_the_run_is_stopped_in_its_second_epoch(epochs, monkeypatch):
    def run(config, data, folder, hooks):
        for epoch in epochs:
            hooks.progress(Progress("train", epoch, 0, 0.0, None, {}))
            if hooks.should_stop():
                assert epoch == 1
                raise Stopped("stopped")

    monkeypatch.setattr(gpu_resume, "run", run)
    stops = pytest.raises(RuntimeError, match="not stopped") if epochs[-1] == 0 else nullcontext()
    with stops:
        gpu_resume.stop_in_second_epoch(None, None, None)


def test_made_up_pictures_can_be_loaded(tmp_path):
    pictures.main([str(tmp_path), "--size=16", "--classes=3", "--each=4"])
    for split in ("train", "validation", "test"):
        found = data.load("folder", split, data_dir=str(tmp_path), image_size=16)
        assert (found.num_classes, found.image_shape) == (3, (16, 16, 3))
        assert [len(found.of_class(i)) for i in range(3)] == [4, 4, 4]


# ---- the script

STUB = """#!/bin/sh
case "$*" in
  "-m benchmarks.machine "*) printf '{\\n "device": "none",\\n "folder": "none"\\n}\\n' ;;
  "-c import torch") exit 1 ;;
  *gpu_checks*) sleep "$CHECKS_TAKE" ;;
  *) echo "$@" ;;
esac
"""


def script(tmp_path, *args, **environment):
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    own = {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "CHECKS_TAKE": "60"}
    done = subprocess.run(
        [SCRIPT, *args], env=os.environ | own | environment, capture_output=True, text=True
    )
    steps = tmp_path / "out" / "steps.txt"
    return done, steps.read_text() if steps.exists() else ""


def test_the_script_ends_a_step_at_its_limit_and_goes_on(tmp_path):
    done, steps = script(tmp_path, "--platform", "cpu", TIME_LIMIT="6")
    assert done.returncode == 0
    assert re.search("^checks: status 124 after [567] s$", steps, re.MULTILINE)
    assert "timing: no time left" in steps and "run-resumed: no time left" in steps
    assert "PyTorch is not installed" in steps


def test_the_script_takes_all_steps(tmp_path):
    done, steps = script(tmp_path, "--platform", "cpu", CHECKS_TAKE="0")
    assert done.returncode == 0
    names = re.findall("^(.*): status 0 after [01] s$", steps, re.MULTILINE)
    assert names == [
        *("checks", "timing", "timing-tensorfloat32", "pytorch", "pytorch-tensorfloat32", "run"),
        *("run-resumed", "timing-loop-scan", "timing-loop-4", "timing-loop-vmap"),
    ]
    out = tmp_path / "out"
    assert "-m experiments.fewshot --preset table-s2" in (out / "run.log").read_text()
    resumed = (out / "run-resumed.log").read_text().split()
    assert resumed[-1] in (out / "run.log").read_text()  # the folder of the run
    # Without PyTorch, only our own form is timed.
    assert "--forms jaxsparse --out" in (out / "pytorch.log").read_text()


def test_the_script_refuses_other_flags(tmp_path):
    done, _ = script(tmp_path, "--platform", "tpu")
    assert done.returncode == 2
    assert done.stderr == "error: the only flag is --platform cpu, got --platform tpu\n"
