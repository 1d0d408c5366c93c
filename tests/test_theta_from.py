"""Training from the theta that a finished run tested."""

import json
import shutil

import numpy as np
import pytest
from small_runs import below, everything, flags, images, newest, quick, refused

from experiments import fewshot, online
from jaxsparse import training

assert images and quick  # fixtures


@pytest.fixture(scope="module")
def source(images, tmp_path_factory):
    """A finished run of MAML with the seeds 3 and 4."""
    run = tmp_path_factory.mktemp("source") / "run"
    fewshot.main([*flags(images, run), "--method=fomaml", "--seed=3", "--seeds=2"])
    return run


@pytest.fixture(scope="module")
def single(images, tmp_path_factory):
    run = tmp_path_factory.mktemp("single") / "run"
    fewshot.main([*flags(images, run), "--method=fomaml", "--theta-lr=0.01"])
    return run


def only_masks(images, out, source, *more):
    """Train masks for the theta of `source`; the arrays of the new checkpoint."""
    before = everything(source)
    fewshot.main([*flags(images, out), f"--theta-from={source}", "--theta-lr=0", *more])
    assert everything(source) == before
    return newest(out)


def check_theta(arrays, source, places):
    tested = below(newest(source), "best.params")
    assert len(tested) == 4
    for where in ("meta.params", "best.params"):
        got = below(arrays, where)
        assert got.keys() == tested.keys()
        for name, leaf in got.items():
            np.testing.assert_array_equal(leaf, tested[name][places], err_msg=name)


def test_seeds_start_from_their_own_theta(images, source, tmp_path):
    out = tmp_path / "run"
    arrays = only_masks(images, out, source, "--seed=3", "--seeds=2")
    check_theta(arrays, source, [0, 1])
    tested = below(newest(source), "best.params")
    assert all(np.abs(x[0] - x[1]).max() > 1e-3 for n, x in tested.items() if "kernel" in n)
    rows = training.RunFolder(out).rows()
    assert rows[0]["sparsity"] != rows[-1]["sparsity"]  # m has moved
    record = json.loads((out / "config.json").read_text())
    assert record["config"]["theta_from"] == str(source) and len(record["theta"]) == 64


def test_a_seed_of_several(images, source, tmp_path):
    check_theta(only_masks(images, tmp_path / "run", source, "--seed=4"), source, [1])


@pytest.mark.slow
def test_all_seeds_start_from_a_single_theta(images, single, tmp_path):
    arrays = only_masks(images, tmp_path / "run", single, "--seed=7", "--seeds=2")
    check_theta(arrays, single, [0, 0])
    mask = below(arrays, "meta.mask")
    assert all(np.abs(x[0] - x[1]).max() > 0 for x in mask.values())  # each has its own


def test_theta_is_trained_without_a_zero_rate(images, single, tmp_path):
    arrays = only_masks(images, tmp_path / "run", single, "--theta-lr=0.01")
    tested = below(newest(single), "best.params")
    for name, leaf in below(arrays, "meta.params").items():
        moved = np.abs(leaf - tested[name]).max()
        assert 0 < moved < 9 * 0.011, name  # Adam moves by at most its rate in each of 9 steps


@pytest.mark.parametrize("seeds", [("--seed=4", "--seeds=2"), ("--seed=2",), ("--seeds=2",)])
def test_other_seeds_are_refused(seeds, images, source, tmp_path, capsys):
    out = tmp_path / "run"
    args = [*flags(images, out), f"--theta-from={source}", *seeds]
    line = refused(capsys, fewshot.main, args)
    assert "the seeds 3 to 4, want" in line and "or a run with one seed" in line
    assert not out.exists()


def changed(run, tmp_path, change):
    """A copy of a run with a change."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    change(copy)
    return copy


def truncate(copy, last=1):
    folders = sorted((copy / "checkpoints").iterdir(), key=lambda p: int(p.name))
    for folder in folders[-last:]:
        file = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        file.write_bytes(file.read_bytes()[:-1])


def other_family(copy):
    record = {"experiment": "online", "config": {}}
    (copy / "config.json").write_text(json.dumps(record))
    assert online.UNIT


UNUSABLE = {
    "unfinished": (lambda run: (run / "result.json").unlink(), "is not finished"),
    "damaged": (lambda run: truncate(run, last=3), "none of the checkpoints"),
    "only an earlier checkpoint": (truncate, "has lost its last checkpoint"),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint"),
    "result": (lambda run: (run / "result.json").write_text('{"seeds": ['), "result.json"),
    "configuration": (lambda run: (run / "config.json").write_text("["), "config.json"),
    "other family": (other_family, "is not a run of fewshot"),
    "absent": (shutil.rmtree, "holds no run"),
}


@pytest.mark.parametrize(("change", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_run_that_cannot_be_used_is_refused(change, message, images, single, tmp_path, capsys):
    copy, out = changed(single, tmp_path, change), tmp_path / "run"
    before = everything(copy)
    line = refused(capsys, fewshot.main, [*flags(images, out), f"--theta-from={copy}"])
    assert line.startswith("error: theta_from: ") and str(copy) in line and message in line
    assert everything(copy) == before
    assert not out.exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("--width=3", "has another network than this run"),
        ("--ways=3", "has another network than this run"),
        ("--image-size=24", "conv1.kernel"),
    ],
)
def test_another_network_is_refused(other, message, images, single, tmp_path, capsys):
    out = tmp_path / "run"
    args = [*flags(images, out), other, f"--theta-from={single}"]
    line = refused(capsys, fewshot.main, args)
    assert "theta_from: " in line and str(single) in line
    assert message in line or "head.kernel" in line
    assert not out.exists()


def test_a_run_whose_source_has_changed_does_not_start(
    images, source, single, tmp_path, monkeypatch, capsys
):
    """It was made, and stopped before its first checkpoint."""
    copy, out = changed(single, tmp_path, lambda run: None), tmp_path / "run"

    def stop(*unused):
        raise training.RunError("stopped")

    args = [*flags(images, out), f"--theta-from={copy}"]
    with monkeypatch.context() as patch:
        patch.setattr(fewshot, "learn", stop)
        refused(capsys, fewshot.main, args)
    assert (out / "config.json").exists()
    shutil.rmtree(copy / "checkpoints")
    fewshot.main([*flags(images, tmp_path / "new"), "--method=fomaml", "--theta-lr=0.05"])
    shutil.copytree(tmp_path / "new" / "checkpoints", copy / "checkpoints")
    line = refused(capsys, fewshot.main, [f"--resume={out}"])
    assert "has another theta than when" in line and str(copy) in line


def test_a_started_run_does_not_need_its_source(images, single, tmp_path):
    copy, out = changed(single, tmp_path, lambda run: None), tmp_path / "run"
    arrays = only_masks(images, out, copy)
    shutil.rmtree(copy)
    (out / "result.json").unlink()
    last = max((out / "checkpoints").iterdir(), key=lambda p: int(p.name))
    shutil.rmtree(last)
    fewshot.main([f"--resume={out}"])
    resumed = newest(out)
    assert all(np.array_equal(leaf, resumed[name]) for name, leaf in arrays.items())
