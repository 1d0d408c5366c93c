"""Kills, errors and a full disk at every file-system call; the next call works."""

import json

import faults
import pytest
from fault_operations import CONFIG, ROWS
from processes import start

from jaxsparse.training import RunFolder

CREATIONS = {
    "create_run": "run",
    "create_in_a_folder_that_is_there": ".",
    "begin_pretraining": "pretrained/run",
}


@pytest.fixture(scope="module")
def at_fault(tmp_path_factory):
    own = faults.Faults(faults.build(tmp_path_factory.mktemp("faults")))
    yield own
    own.close()


def interrupted(at_fault, operation, fault, tmp_path, prepare=lambda place: None):
    """The folder of each operation that had a fault, for each of its calls."""

    def new(name):
        place = tmp_path / name
        place.mkdir()
        prepare(place)
        return place

    whole = at_fault(operation, new("whole"))
    assert whole.ended == "done" and whole.calls > 4, whole
    for call in range(1, whole.calls + 1):
        place = new(f"call-{call}")
        outcome = at_fault(operation, place, fault, call)
        wanted = {"killed"} if fault in "kh" else {"done", "RunError", "WriteError"}
        assert outcome.ended in wanted, (call, outcome)
        assert "\n" not in outcome.message
        yield place


@pytest.mark.parametrize("fault", faults.KINDS, ids=faults.KINDS.get)
@pytest.mark.parametrize("operation", CREATIONS)
def test_a_half_made_folder_is_completed_by_the_same_call(at_fault, operation, fault, tmp_path):
    for place in interrupted(at_fault, operation, fault, tmp_path):
        again = at_fault(operation, place)
        assert again.ended == "done", (place, again)
        folder = RunFolder.open(place / CREATIONS[operation])
        assert folder.config() == CONFIG
        assert {path.name for path in folder.path.iterdir()} == {".lock", "config.json"}


@pytest.mark.parametrize("fault", faults.KINDS, ids=faults.KINDS.get)
def test_a_result_is_complete_or_missing(at_fault, fault, tmp_path):
    def prepare(place):
        RunFolder.create(place, CONFIG)

    for place in interrupted(at_fault, "write_result", fault, tmp_path, prepare):
        assert RunFolder(place).result() in (None, {"accuracy": [0.5] * 1000})
        assert at_fault("write_result", place).ended == "done"
        names = {path.name for path in place.iterdir()}
        assert names == {".lock", "config.json", "result.json"}


@pytest.mark.parametrize("fault", faults.KINDS, ids=faults.KINDS.get)
def test_lines_are_whole_after_a_fault(at_fault, fault, tmp_path):
    def prepare(place):
        RunFolder.create(place, CONFIG)

    for place in interrupted(at_fault, "append", fault, tmp_path, prepare):
        rows = RunFolder(place).rows()
        assert rows in ([], ROWS[:1])
        assert at_fault("append", place).ended == "done"
        assert RunFolder(place).rows() == ROWS[: len(rows) + 1]
        for line in (place / "timing.jsonl").read_text().splitlines():
            assert json.loads(line) == {"seconds": 1.0}


# Whole commands

TINY = {
    "fewshot": [
        *("--width=8", "--ways=3", "--shots=1", "--query-shots=3", "--inner-steps=2"),
        *("--test-inner-steps=2", "--epochs=1", "--steps-per-epoch=2", "--val-tasks=20"),
        "--test-tasks=20",
    ],
    "online": [
        *("--data=glyphs", "--method=maml", "--timesteps=20", "--ways=3", "--shots=2"),
        *("--width=8", "--inner-steps=2", "--pretrain-steps=2", "--pretrain-epochs=1"),
        "--pretrain-batch-size=2",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", TINY)
def test_a_command_killed_at_its_start_can_be_started_again(experiment, tmp_path):
    """Few-shot learning in its own folder; online learning where it pretrains."""
    library, kills = faults.build(tmp_path), 0
    for call in range(1, 100):
        cache, out = tmp_path / f"cache-{call}", tmp_path / f"run-{call}"
        place = out if experiment == "fewshot" else cache / "pretrained"
        own = {"JAXSPARSE_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}

        killed = start(
            experiment, [*TINY[experiment], f"--out={out}"],
            env={**faults.environment(library, "k", call, place), **own},
        )  # fmt: skip
        killed.communicate()
        if any(place.rglob("metrics.jsonl")):
            break
        assert killed.returncode == -9
        kills += 1
        resume = (out / "config.json").exists()
        again = start(
            experiment, [f"--resume={out}"] if resume else [*TINY[experiment], f"--out={out}"],
            env={**faults.environment(library), **own},
        )  # fmt: skip
        _, errors = again.communicate()
        assert again.returncode == 0, (call, errors)
    assert kills > 5
