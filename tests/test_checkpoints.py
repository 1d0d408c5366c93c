"""Damaged checkpoints, in any file, leaf or folder; healthy ones are never moved."""

import gc
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxsparse.training import RunError, WriteError
from jaxsparse.training.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parent.parent


def state_of(number):
    return {
        "w": jnp.arange(24.0).reshape(4, 6) + number,
        "half": jnp.full(3, number, jnp.bfloat16),
        "n": jnp.int32(number),
    }


LIKE = jax.eval_shape(lambda: state_of(0))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """The folder of a run with checkpoints 1, 2 and 3."""
    run = tmp_path_factory.mktemp("healthy")
    for number in (1, 2, 3):
        Checkpoints(run / "checkpoints").save(state_of(number), {"step": number})
    return run


@pytest.fixture
def run(healthy, tmp_path):
    shutil.copytree(healthy, tmp_path / "run")
    return tmp_path / "run"


def contents(path):
    """Every entry below `path`: a file's bytes, None for a folder."""
    return {
        str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None
        for entry in path.rglob("*")
    }


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---- damage


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def zero(path, rng):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path, rng):
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def garble(path, rng):
    path.write_bytes(rng.randbytes(path.stat().st_size))


def delete(path, rng):
    path.unlink()


def replace_by_folder(path, rng):
    path.unlink()
    path.mkdir()


DAMAGES = (truncate, zero, flip, garble, delete, replace_by_folder)


def assert_survives(run, damaged, capfd):
    """Restoring gives the newest healthy one of 1, 2, 3, or refuses; the others are unchanged."""
    left = [number for number in (3, 2, 1) if number not in damaged]
    before = contents(run)
    reports = []
    if not left:
        with pytest.raises(RunError, match="none of the checkpoints") as error:
            Checkpoints(run / "checkpoints").restore(LIKE, reports.append)
        assert "\n" not in str(error.value) and not reports
        assert contents(run) == before
    else:
        got = Checkpoints(run / "checkpoints").restore(LIKE, reports.append)
        chex.assert_trees_all_equal(got, state_of(left[0]), strict=True)
        newer = [number for number in (3, 2, 1) if number > left[0]]
        assert [line.split()[1] for line in reports] == [str(number) for number in newer]
        assert not any("\n" in line for line in reports)
        for number in left:
            folder = f"checkpoints/{number}"
            assert contents(run / folder) == {
                name.removeprefix(f"{folder}/"): raw
                for name, raw in before.items()
                if name.startswith(f"{folder}/")
            }
        assert len(list(run.glob("broken/*"))) == len(newer)
    gc.collect()  # objects that orbax left would warn now
    assert capfd.readouterr() == ("", "")


# Quick in CI, and each file among the slow tests.
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_file_affects_only_that_checkpoint(healthy, run, damage, every, capfd):
    rng = random.Random(0)
    for path in files(healthy / "checkpoints" / "3")[DAMAGES.index(damage) % every :: every]:
        name = path.relative_to(healthy)
        shutil.rmtree(run)
        shutil.copytree(healthy, run)
        damage(run / name, rng)
        if damage is flip and name.parts[2] == "position":
            # A changed digit of the step has no effect; a flip may also miss the record.
            restored = Checkpoints(run / "checkpoints").restore(LIKE, lambda line: None)
            assert int(restored["n"]) in (2, 3)
            continue
        assert_survives(run, {3}, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_damage_anywhere(healthy, run, seed, capfd):
    rng = random.Random(seed)
    for _ in range(10):
        shutil.rmtree(run)
        shutil.copytree(healthy, run)
        damaged = {number for number in (1, 2, 3) if rng.random() < 0.6}
        for number in damaged:
            of_state = files(run / "checkpoints" / str(number) / "state")
            for path in rng.sample(of_state, rng.randint(1, 3)):
                rng.choice(DAMAGES)(path, rng)
        assert_survives(run, damaged, capfd)


def test_if_all_are_damaged_nothing_is_moved(run, capfd):
    for number in "123":
        zero(max(files(run / "checkpoints" / number), key=lambda p: p.stat().st_size), None)
    for _ in range(2):
        assert_survives(run, {1, 2, 3}, capfd)


def test_a_checkpoint_without_its_files_digests_is_known_by_its_arrays(run, capfd):
    """As earlier versions wrote them; orbax's messages about damaged ones are not shown."""
    for number in "123":
        record = run / "checkpoints" / number / "position" / "metadata"
        kept = {k: v for k, v in json.loads(record.read_text()).items() if k != "files"}
        record.write_text(json.dumps(kept))
    logging.getLogger("absl").setLevel(logging.INFO)
    for path in files(run / "checkpoints" / "3" / "state" / "d"):
        truncate(path, random.Random(0))
    assert_survives(run, {3}, capfd)


def test_orbax_reads_what_was_saved(run):
    manager = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    arrays = manager.restore(run.resolve() / "checkpoints" / "3" / "state")
    manager.close()
    chex.assert_trees_all_equal(arrays, jax.tree.map(np.asarray, state_of(3)), strict=True)


# ---- other leaves


@pytest.mark.parametrize(
    ("name", "leaf", "got", "want"),
    [
        ("w", jnp.ones((16, 5)), r"float32\[4, 6\]", r"float32\[16, 5\]"),
        ("w", jnp.ones((6, 4)), r"float32\[4, 6\]", r"float32\[6, 4\]"),
        ("w", jnp.ones(24), r"float32\[4, 6\]", r"float32\[24\]"),
        ("n", jnp.zeros(2, jnp.int32), r"int32\[\]", r"int32\[2\]"),
        ("n", jnp.float32(1), r"int32\[\]", r"float32\[\]"),
        ("half", jnp.ones(3, jnp.float16), r"bfloat16\[3\]", r"float16\[3\]"),
        ("half", None, r"bfloat16\[3\]", "absent"),
        ("more", jnp.int32(1), "absent", r"int32\[\]"),
    ],
)
def test_a_state_with_other_leaves_is_refused_and_nothing_is_moved(run, name, leaf, got, want):
    template = {**state_of(0), name: leaf}
    before = contents(run)
    for _ in range(2):
        with pytest.raises(RunError, match=f"{name} is {got}, want {want}") as error:
            Checkpoints(run / "checkpoints").restore(template, pytest.fail)
        assert "\n" not in str(error.value)
    assert contents(run) == before


def test_leaves_whose_joined_names_are_equal_stay_distinct(tmp_path):
    state = {
        "a": {"b": jnp.zeros(2), "b.c": jnp.ones(2), "b/c": jnp.full(2, 2.0)},
        "a.b": jnp.full(2, 3.0),
        "a/b": jnp.full(2, 4.0),
        "a%2Eb": jnp.full(2, 5.0),
        "": jnp.full(2, 6.0),
        "..": [jnp.full(2, 7.0), {"é|*": jnp.full(2, 8.0)}],
    }
    Checkpoints(tmp_path / "checkpoints").save(state, {"step": 1})
    got = Checkpoints(tmp_path / "checkpoints").restore(jax.eval_shape(lambda: state), pytest.fail)
    chex.assert_trees_all_equal(got, state, strict=True)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_keep_their_kind(tmp_path, kind):
    state = {"key": jax.random.key(3, impl=kind)}
    Checkpoints(tmp_path / "checkpoints").save(state, {"step": 1})
    for template in (state, jax.eval_shape(lambda: state)):
        got = Checkpoints(tmp_path / "checkpoints").restore(template, pytest.fail)["key"]
        assert jax.random.key_impl(got) == jax.random.key_impl(state["key"])
        assert (jax.random.bits(got) == jax.random.bits(state["key"])).all()


# ---- places


ODD_NAMES = [
    *(
        "run[1]",
        "{a,b}",
        "gs:",
        "%20",
        "a\nb",
        "c.orbax-checkpoint-tmp-1",
        os.fsdecode(b"\xff\xfe"),
    ),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("a*b?", "file:", "a|b", "a#b", "a b", "ü", "a\\b", "**", "[!a]")
    ),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_may_have_any_name(name, tmp_path, monkeypatch):
    place = tmp_path / name
    try:
        place.mkdir()
    except OSError:
        pytest.skip("no such name on this file system")
    monkeypatch.chdir(tmp_path)
    for path in (Path(name), place):
        for number in range(1, 3):
            Checkpoints(path / "checkpoints").save(state_of(number), {"step": number})
        got = Checkpoints(path / "checkpoints").restore(LIKE, pytest.fail)
        chex.assert_trees_all_equal(got, state_of(2), strict=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_temporary_folder_with_a_special_name_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "run[1]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "run[1]"))
    checkpoints = Checkpoints(tmp_path / "run[1]" / "checkpoints")
    checkpoints.save(state_of(1), {"step": 1})
    chex.assert_trees_all_equal(checkpoints.restore(LIKE, pytest.fail), state_of(1))


def test_an_unreadable_first_checkpoint_is_removed(tmp_path, monkeypatch):
    write = ocp.Checkpointer.save

    def forgetful(self, path, *args, **options):
        write(self, path, *args, **options)
        shutil.rmtree(path)
        path.mkdir()

    monkeypatch.setattr(ocp.Checkpointer, "save", forgetful)
    with pytest.raises(WriteError):
        Checkpoints(tmp_path / "checkpoints").save(state_of(1), {"step": 1})
    assert not list(tmp_path.iterdir())


# ---- what keeps a checkpoint from being written


LIMITED = """
import gc, os, resource, sys, time
from pathlib import Path
import numpy as np
from jaxsparse.training import WriteError
from jaxsparse.training.checkpoints import Checkpoints

run, limit, ask = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "ask"
state = {f"w{i}": np.random.default_rng(i).normal(size=30_000) for i in range(20)}
checkpoints = Checkpoints(run / "checkpoints")
checkpoints.save(state, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if not ask:
    Checkpoints._check_room = lambda self, size: None
try:
    checkpoints.save(state, {"step": 2})
except WriteError as error:
    print(error)
gc.collect()
time.sleep(0.3)  # threads that still run
assert os.listdir(run / "checkpoints") == ["1"], os.listdir(run / "checkpoints")
restored = checkpoints.restore(state, print)
assert all((np.asarray(restored[name]) == state[name]).all() for name in state)
"""


@pytest.mark.parametrize(
    ("limit", "ask"),
    [
        (0, "ask"),
        (2_000_000, "do not ask"),
        pytest.param(0, "do not ask", marks=pytest.mark.slow),
        pytest.param(2_000_000, "ask", marks=pytest.mark.slow),
    ],
)
def test_a_limit_on_the_size_of_files_is_one_line(limit, ask, tmp_path):
    program = [sys.executable, "-c", LIMITED, str(tmp_path), str(limit), ask]
    env = {**os.environ, "JAX_ENABLE_X64": "1"}
    done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"cannot write to {tmp_path}/checkpoints: ")


def test_checkpoints_deleted_in_between_do_no_harm(run):
    shutil.rmtree(run / "checkpoints")
    Checkpoints(run / "checkpoints").save(state_of(4), {"step": 4})
    got = Checkpoints(run / "checkpoints").restore(LIKE, pytest.fail)
    chex.assert_trees_all_equal(got, state_of(4))
    shutil.rmtree(run)
    with pytest.raises(WriteError, match=r"cannot write to .*: No such file or directory"):
        Checkpoints(run / "checkpoints").save(state_of(5), {"step": 5})


def test_leftovers_of_a_killed_writer_are_no_checkpoint(run, monkeypatch):
    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        patch.setattr(shutil, "rmtree", lambda path: None)
        Checkpoints(run / "checkpoints").save(state_of(4), {"step": 4})
    assert [p.name for p in run.iterdir() if p.name != "checkpoints"]
    Checkpoints(run / "checkpoints").save(state_of(5), {"step": 5})
    assert [p.name for p in run.iterdir()] == ["checkpoints"]
    got = Checkpoints(run / "checkpoints").restore(LIKE, pytest.fail)
    chex.assert_trees_all_equal(got, state_of(5))
