"""The run folder: what is written is whole, what cannot be read is set aside."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxsparse.training import RunError, RunFolder, WriteError
from jaxsparse.training.checkpoints import Checkpoints


class State(NamedTuple):
    """Leaves whose order is not that of their names."""

    w: Any
    half: Any
    n: Any
    key: Any


STATE = State(
    w={"z": jnp.arange(6.0).reshape(2, 3), "a": jnp.ones((2, 3))},
    half=jnp.ones(3, jnp.bfloat16),
    n=jnp.int32(7),
    key=jax.random.split(jax.random.key(3), 2),
)
NEWER = STATE._replace(n=jnp.int32(8))


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"config": {"shots": 5}})
    with folder.lock():
        yield folder


def checkpoints(folder):
    return Checkpoints(folder.path / "checkpoints")


def row(epoch):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "loss": 1.0 / (1 + epoch),
        "sparsity": {"total": 0.5},
    }


def events(path: Path) -> list[Event]:
    """The records of TensorBoard event files: length, its CRC, the message, its CRC."""
    found = []
    for file in sorted(path.glob("events*")):
        raw = file.read_bytes()
        while raw:
            (length,) = struct.unpack("<Q", raw[:8])
            found.append(Event.FromString(raw[12 : 12 + length]))
            raw = raw[16 + length :]
    return found


def assert_same(got, wanted):
    def words(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    got, wanted = jax.tree.map(words, got), jax.tree.map(words, wanted)
    chex.assert_trees_all_equal(got, wanted, strict=True)


def test_a_checkpoint_comes_back_as_it_was(folder):
    assert checkpoints(folder).restore(STATE, pytest.fail) is None
    checkpoints(folder).save(STATE, {"step": 1, "epoch": 0})
    checkpoints(folder).save(NEWER, {"step": 2, "epoch": 0})
    assert_same(checkpoints(folder).restore(jax.eval_shape(lambda: STATE), pytest.fail), NEWER)


def test_only_the_newest_checkpoints_are_kept(folder):
    for step in range(5):
        checkpoints(folder).save(STATE, {"step": step, "epoch": 0})
    names = sorted(path.name for path in (folder.path / "checkpoints").iterdir())
    assert names == ["3", "4", "5"]


def garble_largest(path: Path):
    largest = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(largest.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 40] = os.urandom(40)
    largest.write_bytes(raw)


def truncate_all(path: Path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_folder(path: Path):
    for file in path.rglob("*"):
        if file.is_file():
            file.unlink()


def other_numbers(path: Path):
    """A checkpoint that is readable but does not hold what its digest says."""
    position = path / "position" / "metadata"
    record = json.loads(position.read_text())
    position.write_text(json.dumps({**record, "digest": "0" * 64}))


@pytest.mark.parametrize("damage", [garble_largest, truncate_all, empty_folder, other_numbers])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(folder, damage):
    checkpoints(folder).save(STATE, {"step": 1, "epoch": 0})
    checkpoints(folder).save(NEWER, {"step": 2, "epoch": 0})
    damage(folder.path / "checkpoints" / "2")
    reports = []
    assert_same(checkpoints(folder).restore(jax.eval_shape(lambda: STATE), reports.append), STATE)
    assert len(reports) == 1 and "checkpoint 2" in reports[0] and "\n" not in reports[0]
    # The number is free again, and what was damaged is kept for a look at it.
    checkpoints(folder).save(STATE, {"step": 2, "epoch": 0})
    assert len(list((folder.path / "broken").iterdir())) == 1


def test_no_readable_checkpoint_is_an_error(folder):
    checkpoints(folder).save(STATE, {"step": 1, "epoch": 0})
    truncate_all(folder.path / "checkpoints" / "1")
    with pytest.raises(RunError, match="none of the checkpoints"):
        checkpoints(folder).restore(STATE, lambda line: None)


def test_a_half_written_row_is_dropped_and_rows_after_the_checkpoint_are(folder):
    for epoch in (0, 1, 2):
        folder.add_row(row(epoch))
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    assert folder.rows() == [row(0), row(1), row(2)]
    folder.keep_rows(1)
    folder.add_row(row(2))
    assert folder.rows() == [row(0), row(1), row(2)]
    with pytest.raises(RunError, match="lacks epochs before 3"):
        folder.keep_rows(3)


def test_the_events_hold_the_rows_scalars(folder):
    folder.add_row(row(3))
    values = {
        value.tag: value.simple_value
        for event in events(folder.path)
        for value in event.summary.value
        if event.step == 30
    }
    assert values == {"loss": 0.25, "sparsity/total": 0.5}


def test_the_row_before_training_reaches_tensorboard_with_the_first_epochs(tmp_path):
    path = tmp_path / "run"
    killed = RunFolder.create(path, {})
    with killed.lock():
        killed.add_row(row(0))
    assert not events(path)
    resumed = RunFolder.open(path)
    with resumed.lock():
        resumed.keep_rows(0)
        resumed.add_row(row(1))
    scalars = [(event.step, value.tag) for event in events(path) for value in event.summary.value]
    assert scalars == [(step, tag) for step in (0, 10) for tag in ("loss", "sparsity/total")]


def test_a_run_that_goes_on_tells_tensorboard_from_where(folder):
    folder.add_row(row(0))
    folder.add_row(row(1))
    folder.keep_rows(0)
    folder.add_row(row(1))
    starts = [e for e in events(folder.path) if e.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == [1]


def test_a_run_starts_without_importing_what_takes_seconds():
    program = "import sys, experiments.report; print({'torch', 'tensorboardX'} & set(sys.modules))"
    python = [sys.executable, "-c", program]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(python, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_one_writer_at_a_time(folder):
    with pytest.raises(RunError, match="another process"), RunFolder.open(folder.path).lock():
        pass


def test_places_that_cannot_hold_a_new_run(folder, tmp_path):
    with pytest.raises(RunError, match="holds another run"):
        RunFolder.create(folder.path, {})
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(file, {})
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="not empty"):
        RunFolder.create(other, {})
    with pytest.raises(RunError, match="holds no run"):
        RunFolder.open(other)
    with pytest.raises(RunError, match="cannot write to"):
        RunFolder.create(Path("/proc/run"), {})


def test_a_row_that_does_not_fit_on_the_disk_is_one_line(folder):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (folder.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(WriteError, match="No space left on device"):
        folder.add_row(row(1))


def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        folder = RunFolder.create(small / "run", {})
        checkpoints(folder).save(STATE, {"step": 1, "epoch": 0})
        large = jax.random.normal(jax.random.key(0), (2**19,))
        with pytest.raises(WriteError, match="no space left on the device") as error:
            checkpoints(folder).save(
                STATE._replace(w={"z": large, "a": large}), {"step": 2, "epoch": 0}
            )
        assert "\n" not in str(error.value)
        folder = RunFolder.open(small / "run")
        assert_same(checkpoints(folder).restore(STATE, pytest.fail), STATE)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_matrix_takes_a_line_for_each_row(folder):
    result = {"rows": [[1, None], [0.5, 2]], "text": "a [ b ]", "empty": [], "seeds": [{"x": [1]}]}
    folder.write_result(result)
    text = (folder.path / "result.json").read_text()
    assert "    [1, null],\n    [0.5, 2]\n" in text
    assert json.loads(text) == result
