"""The benchmark of a whole stream: both sides learn the same; its counts and errors."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import harness, machine, ours_continual, stream, torch_continual
from experiments.continual import load_stream
from experiments.continual.presets import preset_config

# A memory so small that the reservoir drops rows.
CONFIG = dataclasses.replace(
    preset_config("rotations", "sparse-lamaml", "glyphs"),
    tasks=2, samples_per_task=20, glances=2, memories=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return load_stream(CONFIG)


@pytest.mark.parametrize(
    "method", ["sparse-lamaml", pytest.param("lamaml", marks=pytest.mark.slow)]
)
def test_both_sides_learn_the_same(method, digits):
    config = dataclasses.replace(CONFIG, method=method)
    errors = stream.check_batches(config, digits)
    assert max(max(of.values()) for of in errors.values()) < 1e-4, errors


def test_another_arithmetic_is_a_mismatch(digits, monkeypatch):
    monkeypatch.setattr(torch_continual.StreamLearner, "_remember", lambda *args: None)
    monkeypatch.setattr(
        torch_continual.StreamLearner,
        "_meta_batch",
        lambda self, images, labels, picks: (images, labels),
    )
    with pytest.raises(harness.Mismatch, match=r"after 3 batches its updated params differ"):
        stream.check_batches(CONFIG, digits)


def test_the_memory_is_a_reservoir(digits):
    """Three rows more than its 12 get the slots 3, 12 and 0: the second row is dropped."""
    peer = stream.torch_learners(CONFIG, digits)(0)
    images, labels = ours_continual.task_images(digits, 0, np.arange(15))
    images, labels = torch_continual.tensors(images, labels)
    for row, slot in enumerate([99] * 12 + [3, 12, 0]):
        peer._remember(images[row], labels[row], slot)
    kept = [14, 1, 2, 12, *range(4, 12)]
    for (image, label), row in zip(peer.memory, kept, strict=True):
        np.testing.assert_array_equal(image, images[row])
        assert label == labels[row]
    assert peer.age == 15
    # Its own draws: picks are indices into the memory, at most 10 of them.
    rows, classes = peer._meta_batch(images[:4], labels[:4], None)
    assert rows.shape == (14, 784)
    np.testing.assert_array_equal(rows[10:], images[:4])
    np.testing.assert_array_equal(classes[10:], labels[:4])
    assert all((rows[i] == images).all(1).any() for i in range(10))


class Clock:
    """Learns a task in a given number of seconds, and measures one test set in one second."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.measured = 0.0, iter(seconds), 0
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.now)

    def train_task(self, images, labels):
        self.now += next(self.seconds)

    def accuracy(self, images, labels):
        self.now += 1.0
        self.measured += 1
        return 0.5


def test_times_are_scaled_by_the_counts(monkeypatch):
    """The first of 5 tasks takes 2 s, later ones 7 s; 10 passes over 5 test sets take 1 s each."""
    data = [((None, None), (None, None))] * 5
    peer = Clock(monkeypatch, [2.0, 7.0])
    times = stream.peer_times(peer, data, 2)
    assert (times.train, times.test, times.total) == (2 + 4 * 7, 50, 80)
    assert peer.measured == 10
    peer = Clock(monkeypatch, [2.0, *[7.0] * 4])
    whole = stream.peer_times(peer, data, 5)
    assert whole[:2] == times[:2]
    assert peer.measured == 50
    assert whole.accuracy.shape == (6, 5)


@pytest.mark.slow
def test_whole_benchmark(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(machine.MATMUL_SIZE, "cpu", 64)
    flags = ["--method=lamaml", "--data=glyphs", "--tasks=2", "--samples-per-task=20", "--full"]
    stream.main([*flags, "--repeats=1", "--threads=1", f"--out={tmp_path}"])
    results = json.loads((tmp_path / "stream-result.json").read_text())
    (entry,) = results["methods"]
    for side in ("ours", "peer"):
        assert entry[side]["median_s"]["total"] > 0
        assert 0 <= entry[side]["retained_accuracy"][0] <= 1
    assert entry["peer"]["threads"] == 1
    whole = entry["ours"]["median_s"]["total"] / entry["peer"]["median_s"]["total"]
    assert entry["ratio"]["total"] == pytest.approx(whole)
    table = (tmp_path / "stream-table.md").read_text()
    assert "| PyTorch (threads: 1, whole) |" in table
    assert table in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tasks=1"], "--tasks must be at least 2, got 1"),
        (["--repeats=0"], "--repeats must be at least 1, got 0"),
        (["--threads=0"], "--threads must be at least 1, got 0"),
        (["--method=er"], "--method"),
    ],
)
def test_errors_are_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        stream.main(flags)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines
