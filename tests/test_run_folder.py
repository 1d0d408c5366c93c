"""The run folder: written files are complete, unreadable ones are set aside."""

import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxsparse.training import RunError, RunFolder, Stopped, WriteError, locks
from jaxsparse.training.checkpoints import Checkpoints
from jaxsparse.training.files import replacing


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


def test_a_checkpoint_is_restored_unchanged(folder):
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
    """A checkpoint that is readable, but whose content does not match its digest."""
    position = path / "position" / "metadata"
    record = json.loads(position.read_text())
    position.write_text(json.dumps({**record, "digest": "0" * 64}))


def other_place(path: Path):
    """A checkpoint that names a file outside its folder."""
    (path / "position" / "metadata").write_text('{"digest": "0", "files": {"/nowhere": "0"}}')


def too_deep(path: Path):
    (path / "position" / "metadata").write_text("[" * 100_000)


@pytest.mark.parametrize(
    "damage",
    [garble_largest, truncate_all, empty_folder, other_numbers, other_place, too_deep],
)
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(folder, damage):
    checkpoints(folder).save(STATE, {"step": 1, "epoch": 0})
    checkpoints(folder).save(NEWER, {"step": 2, "epoch": 0})
    damage(folder.path / "checkpoints" / "2")
    reports = []
    assert_same(checkpoints(folder).restore(jax.eval_shape(lambda: STATE), reports.append), STATE)
    assert len(reports) == 1 and "checkpoint 2" in reports[0] and "\n" not in reports[0]
    # The number is free again, and the damaged checkpoint is kept for inspection.
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
    with pytest.raises(RunError, match="lacks epochs up to 3"):
        folder.keep_rows(3)


@pytest.mark.parametrize("left", ["", '{"epoch": 0, "st'])
def test_a_lost_first_row_is_noticed(folder, left):
    folder.add_row(row(0))
    (folder.path / "metrics.jsonl").write_text(left)
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        folder.keep_rows(0)  # the checkpoint is from the first epoch
    assert (folder.path / "metrics.jsonl").read_text() == left


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


def test_a_resumed_run_tells_tensorboard_its_first_step(folder):
    folder.add_row(row(0))
    folder.add_row(row(1))
    folder.keep_rows(0)
    folder.add_row(row(1))
    starts = [e for e in events(folder.path) if e.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == [1]


def test_a_run_starts_without_slow_imports():
    program = "import sys, experiments.report; print({'torch', 'tensorboardX'} & set(sys.modules))"
    python = [sys.executable, "-c", program]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(python, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_import_jaxsparse_gives_the_runs_of_all_families():
    program = (
        "import jaxsparse; t = jaxsparse.training; print(t.make_train.__name__,"
        "t.continual.make_stream.__name__, t.online.make_online.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["make_train", "make_stream", "make_online"], done.stderr


def test_one_writer_at_a_time(folder):
    with pytest.raises(RunError, match="another process"), RunFolder.open(folder.path).lock():
        pass


def test_invalid_places_for_a_new_run(folder, tmp_path):
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
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place, why in (
        (link, "is a broken link"),
        (pipe, "want a folder"),
        (Path("/dev/null"), "want a folder"),
        (file / "run", "Not a directory"),
        (tmp_path / ("n" * 300), "File name too long"),
        (Path("a\0b"), "null byte"),
    ):
        with pytest.raises(RunError, match=why) as error:
            RunFolder.create(place, {})
        assert "\n" not in str(error.value)
    assert not (tmp_path / "nowhere").exists()


def test_folders_that_nobody_may_enter(tmp_path):
    if os.geteuid():
        pytest.skip("only root can lend its rights to nobody")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    RunFolder.create(closed / "run", {})
    calls = {
        "create": lambda: RunFolder.create(closed / "new", {}),
        "check_new": lambda: RunFolder.check_new(closed / "run"),
        "open": lambda: RunFolder.open(closed / "run"),
        "config": lambda: RunFolder(closed / "run").config(),
        "result": lambda: RunFolder(closed / "run").result(),
        "rows": lambda: RunFolder(closed / "run").rows(),
    }
    os.seteuid(65534)
    try:
        for name, call in calls.items():
            with pytest.raises(RunError, match="Permission denied"):
                call()
                pytest.fail(name)
    finally:
        os.seteuid(0)


def test_an_empty_run_is_reused_by_the_same_call_only(tmp_path):
    config = {"config": {"shots": 5, "rates": (0.1, 0.2)}, "versions": {"jax": "1"}}
    RunFolder.create(tmp_path / "run", config)
    before = (tmp_path / "run" / "config.json").read_bytes()
    RunFolder.check_new(tmp_path / "run", {"config": config["config"]})
    RunFolder.create(tmp_path / "run", config)
    for other in ({**config, "config": {"shots": 1}}, {**config, "versions": {"jax": "2"}}):
        with pytest.raises(RunError, match="holds another run"):
            RunFolder.create(tmp_path / "run", other)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    with RunFolder.open(tmp_path / "run").lock():
        RunFolder.open(tmp_path / "run").add_row(row(0))
    with pytest.raises(RunError, match="holds another run"):
        RunFolder.create(tmp_path / "run", config)


def test_a_users_files_in_a_folder_stay(tmp_path):
    for name in (".notes", "config.json.bak", ".partial.json", ".0123456789ab.partial.png"):
        place = tmp_path / name
        place.mkdir()
        (place / name).write_text("mine")
        with pytest.raises(RunError, match="not empty"):
            RunFolder.create(place, {})
        assert [path.name for path in place.iterdir()] == [name]


def test_folders_without_a_name_are_never_shared(tmp_path):
    places = [RunFolder.create_unnamed(tmp_path / "runs" / "now") for _ in range(3)]
    assert [place.name for place in places] == ["now", "now-2", "now-3"]
    assert all(place.is_dir() and not any(place.iterdir()) for place in places)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to"):
        RunFolder.create_unnamed(tmp_path / "file" / "now")


def test_a_half_made_folder_is_reported(tmp_path):
    (tmp_path / ".lock").write_text("")
    with pytest.raises(RunError, match=r"its creation was interrupted, start it again with --out"):
        RunFolder.open(tmp_path)


# Locks


def test_a_waiting_process_takes_over(folder):
    other, told = RunFolder.open(folder.path), []
    script = (
        "import sys, time; from pathlib import Path; from jaxsparse.training import RunFolder\n"
    )
    script += "with RunFolder(Path(sys.argv[1])).lock(): print(flush=True); time.sleep(600)"
    place = folder.path.parent / "other"
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", script, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as holder:
        holder.stdout.readline()

        def wait():
            told.append(holder.poll())
            if len(told) == 2:
                holder.kill()
                holder.wait()

        other = RunFolder(place)
        with other.lock(wait):
            assert told[:2] == [None, None]
            other.begin({"config": {}})
    assert RunFolder.open(place).config() == {"config": {}}


def at_once(count, function):
    """The results or errors of `function(i)`, called by several threads at once."""
    barrier, found = threading.Barrier(count), {}

    def call(i):
        barrier.wait()
        try:
            found[i] = function(i)
        except RunError as error:
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_one_of_several_simultaneous_starts_makes_the_folder(tmp_path):
    for turn in range(20):
        path = tmp_path / str(turn)
        found = at_once(4, lambda i, path=path: RunFolder.create(path, {"config": {"seed": i}}))
        (winner,) = (i for i, one in found.items() if isinstance(one, RunFolder))
        assert RunFolder.open(path).config() == {"config": {"seed": winner}}
        said = {str(one).removeprefix(f"{path} ")[:18] for i, one in found.items() if i != winner}
        assert said <= {"holds another run;", "is being written b"}
        assert {p.name for p in path.iterdir()} == {".lock", "config.json"}


def test_a_run_made_between_check_and_lock_is_left_alone(tmp_path, monkeypatch):
    ours, theirs, look = {"config": {"n": 1}}, {"config": {"n": 2}}, RunFolder.check_new
    others = iter([lambda: RunFolder.create(tmp_path / "run", theirs)])

    def look_and_sleep(path, config=None):
        look(path, config)
        if config == ours and (other := next(others, None)):
            other()

    monkeypatch.setattr(RunFolder, "check_new", staticmethod(look_and_sleep))
    with pytest.raises(RunError, match="holds another run"):
        RunFolder.create(tmp_path / "run", ours)
    assert RunFolder.open(tmp_path / "run").config() == theirs


def test_an_existing_configuration_stays(folder):
    folder.begin({"config": {"shots": 1}})
    assert folder.config() == {"config": {"shots": 5}}
    (folder.path / "config.json").unlink()
    with pytest.raises(RunError, match="not JSON compliant"):
        folder.begin({"config": {"rate": float("nan")}})


@pytest.mark.filterwarnings("ignore:files cannot be locked")
@pytest.mark.parametrize("locks_of", ["the system", "our own"])
def test_one_of_several_simultaneous_resumes_has_the_folder(tmp_path, locks_of, monkeypatch):
    if locks_of == "our own":
        monkeypatch.setattr(locks, "fcntl", None)
    RunFolder.create(tmp_path / "run", {})
    inside = []

    def go_on(i):
        with RunFolder.open(tmp_path / "run").lock():
            inside.append(i)
            assert len(inside) == 1
            time.sleep(0.05)
            inside.remove(i)
        return i

    for _ in range(5):
        found = at_once(4, go_on)
        assert any(isinstance(one, int) for one in found.values())
        assert all(isinstance(one, int | RunError) for one in found.values())


def test_waiting_ends_when_the_waiter_asks(folder):
    def wait():
        raise Stopped("asked to")

    with pytest.raises(Stopped), RunFolder.open(folder.path).lock(wait):
        pass


@pytest.mark.filterwarnings("ignore:files cannot be locked")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_of_the_system_a_file_names_the_holder(tmp_path, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    path, holder = tmp_path / "run", tmp_path / "run" / ".lock-holder"
    folder = RunFolder.create(path, {})
    assert not holder.exists()
    with folder.lock():
        with pytest.raises(RunError, match="by another process") as error:
            RunFolder.open(path).lock().__enter__()
        assert f"{os.getpid()} on {socket.gethostname()}" in str(error.value)
    ended = subprocess.Popen(["true"])
    ended.wait()
    holder.write_text(f"{ended.pid} {socket.gethostname()}")  # left by a killed process
    with folder.lock():
        assert holder.read_text().startswith(f"{os.getpid()} ")
    holder.write_text("1 elsewhere")
    with (
        pytest.raises(RunError, match=r"1 on elsewhere; if that has ended, delete .*holder"),
        folder.lock(),
    ):
        pass
    holder.unlink()
    assert {p.name for p in path.iterdir()} == {".lock", "config.json"}


@pytest.mark.filterwarnings("ignore:files cannot be locked")
def test_a_lock_by_name_is_taken_over_by_one_process(folder, monkeypatch):
    """Two processes find the link of one that has ended; the other replaces it first."""

    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def other_is_faster(process):
        monkeypatch.setattr(locks, "_lives", lives)
        assert not lives(process)
        holder.write_text(f"1 {socket.gethostname()}")
        return False

    monkeypatch.setattr(fcntl, "flock", flock)
    holder, lives = folder.path / ".lock-holder", locks._lives
    ended = subprocess.Popen(["true"])
    ended.wait()
    holder.write_text(f"{ended.pid} {socket.gethostname()}")
    monkeypatch.setattr(locks, "_lives", other_is_faster)
    with pytest.raises(RunError, match=f"another process, 1 on {socket.gethostname()}"):
        folder.lock().__enter__()
    assert holder.read_text().startswith("1 ")
    assert not list(folder.path.glob(".*.partial"))


def test_a_lock_that_fails_is_one_line(folder, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(RunError, match="cannot be locked: Input/output error"),
        RunFolder.open(folder.path).lock(),
    ):
        pass


def test_without_fcntl_runs_work(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.warns(
        UserWarning, match="files cannot be locked in .*run; .lock-holder there names"
    ):
        folder = RunFolder.create(tmp_path / "run", {})
    with pytest.warns(UserWarning), folder.lock():
        pass


# Damage


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b'"run"', b"3", b"", b"{", b"\xff\xfe", b"\0\0\0", b"[" * 100_000],
    ids=["list", "null", "text", "number", "nothing", "half", "not UTF-8", "NUL", "deep"],
)
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_small_file_of_another_content_is_one_line(folder, name, content):
    (folder.path / name).write_bytes(content)
    read = folder.config if name == "config.json" else folder.result
    with pytest.raises(RunError, match=rf"{name} cannot be read") as error:
        read()
    assert "\n" not in str(error.value)


def test_a_pipe_or_folder_in_place_of_a_small_file_is_one_line(folder):
    for name, read in (("result.json", folder.result), ("metrics.jsonl", folder.rows)):
        os.mkfifo(folder.path / name)
        with pytest.raises(RunError, match=f"{name} is not a file"):
            read()
        (folder.path / name).unlink()
        (folder.path / name).mkdir()
        with pytest.raises(RunError, match=f"{name} is not a file"):
            read()


DAMAGE = {
    "not UTF-8": b"\xff\xfe",
    "NUL": b"\0\0\0",
    "a list": b"[1, 2]",
    "a word": b'"epoch"',
    "nothing": b"",
    "torn": b'{"epoch": 1, "st',
    "joined": b'{"epoch": 1, "st{"epoch": 1, "step": 10}',
    "no unit": b'{"step": 10}',
    "no step": b'{"epoch": 1}',
    "a fraction": b'{"epoch": 1.5, "step": 10}',
    "a number in words": b'{"epoch": "one", "step": 10}',
    "twice": b'{"epoch": 0, "step": 0}',
    "too far": b'{"epoch": 2, "step": 20}',
    "text for a number": b'{"epoch": 1, "step": 10, "loss": "low"}',
    "text within": b'{"epoch": 1, "step": 10, "sparsity": {"total": ["high"]}}',
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_row_is_named_and_those_before_it_are_kept(folder, line):
    for epoch in (0, 1, 2):
        folder.add_row(row(epoch))
    path = folder.path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    before = path.read_bytes()
    for read in (folder.rows, lambda: folder.keep_rows(2)):
        with pytest.raises(RunError, match=r"metrics.jsonl cannot be read: line 2 is not the row"):
            read()
    assert path.read_bytes() == before
    folder.keep_rows(0)  # the checkpoint is from before the damage
    folder.add_row(row(1))
    assert folder.rows() == [row(0), row(1)]


def test_zeros_that_a_failing_machine_left_at_the_end_are_no_row(folder):
    folder.add_row(row(0))
    with (folder.path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 512)
    assert folder.rows() == [row(0)]


def test_a_line_after_half_a_line_is_separate(folder):
    path = folder.path / "timing.jsonl"
    for torn in (b'{"epoch": 1, "sec', b"\0" * 9):
        path.write_bytes(b'{"epoch": 0}\n' + torn)
        folder.log_timing(epoch=1)
        assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n'


def test_values_that_are_not_finite_are_null_and_reported_once_per_file(folder):
    nan, inf = float("nan"), float("inf")
    bad = {**row(1), "loss": [nan, 1.0], "sparsity": {"total": -inf, "head": 0.5}}
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: null .* loss, sparsity/total") as told:
        folder.add_row(bad)
        folder.add_row({**bad, "epoch": 2})
    assert len(told) == 1
    stored = {**row(1), "loss": [None, 1.0], "sparsity": {"total": None, "head": 0.5}}
    (folder.path / "metrics.jsonl").write_text(
        json.dumps(row(0)) + "\n" + json.dumps(stored) + "\n"
    )
    assert folder.rows()[1] == stored
    with pytest.warns(UserWarning, match=r"result\.json: null .* seeds/loss"):
        folder.write_result({"seeds": [{"loss": inf}], "matrix": [[None, 1.0]]})
    assert folder.result() == {"seeds": [{"loss": None}], "matrix": [[None, 1.0]]}
    for name in ("metrics.jsonl", "result.json"):
        text = (folder.path / name).read_text()
        assert "NaN" not in text and "Infinity" not in text
    values = {v.tag: v.simple_value for e in events(folder.path) for v in e.summary.value}
    assert values["sparsity/head"] == 0.5 and values["loss"] != values["loss"]


def test_nan_in_rows_of_earlier_versions_becomes_null(folder):
    (folder.path / "metrics.jsonl").write_text(
        json.dumps(row(0)) + "\n" + json.dumps({**row(1), "loss": float("nan")}) + "\n"
    )
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: null .* loss"):
        folder.keep_rows(1)
    assert folder.rows() == [row(0), {**row(1), "loss": None}]


# Files that are replaced


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path, link = tmp_path / "document.md", tmp_path / "link.md"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and sorted(tmp_path.iterdir()) == [path, link]
    with replacing(link) as partial:
        assert partial.suffix == ".md"
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(OSError, match="is not a file"), replacing(Path("/dev/null")) as partial:
        partial.write_text("")
    assert Path("/dev/null").is_char_device()


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


def test_a_matrix_has_a_line_per_row(folder):
    result = {"rows": [[1, None], [0.5, 2]], "text": "a [ b ]", "empty": [], "seeds": [{"x": [1]}]}
    folder.write_result(result)
    text = (folder.path / "result.json").read_text()
    assert "    [1, null],\n    [0.5, 2]\n" in text
    assert json.loads(text) == result
