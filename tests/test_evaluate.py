"""Finished runs that are tested again."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import everything, flags, images, quick, refused, write_images

from experiments import evaluate, fewshot

assert images and quick  # fixtures


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run of two seeds with an ensemble, on grey images."""
    run = tmp_path_factory.mktemp("finished") / "run"
    fewshot.main([*flags(images, run), "--seed=3", "--seeds=2", "--ensemble=2"])
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def evaluated(run, *args):
    """The content of the only new file of RUN/evaluations."""
    before = set(run.glob("evaluations/*"))
    evaluate.main([str(run), *args])
    (path,) = set(run.glob("evaluations/*")) - before
    return json.loads(path.read_text())


def measured(seed):
    """What a seed's result says about the test."""
    chosen = ("seed", "accuracy", "interval95", "loss", "ensemble_accuracy", "ensemble_interval95")
    return {name: seed[name] for name in chosen if name in seed}


def test_the_flags_of_the_run_give_its_result(run, monkeypatch, capsys):
    own = json.loads((run / "result.json").read_text())
    before = everything(run)
    content = evaluated(run)
    shown = capsys.readouterr().out
    result = content["result"]
    assert [measured(x) for x in result["seeds"]] == [measured(x) for x in own["seeds"]]
    assert all("ensemble_accuracy" in x for x in result["seeds"])
    for name in ("accuracy", "accuracy_std_over_seeds", "ensemble_accuracy", "test_tasks"):
        assert result[name] == own[name]
    assert f"{100 * own['accuracy']:.2f} +- {100 * own['accuracy_std_over_seeds']:.2f}" in shown
    assert f"{100 * own['ensemble_accuracy']:.2f}" in shown
    assert before.items() <= everything(run).items()
    # The second time the file is read.
    after = everything(run)
    monkeypatch.setattr(evaluate, "evaluate_run", lambda *unused: pytest.fail("computed again"))
    evaluate.main([str(run)])
    assert capsys.readouterr().out == shown and everything(run) == after
    # Runs of earlier versions do not store the format of their images.
    record = json.loads((run / "config.json").read_text())
    stored = record.pop("images")
    assert stored["shape"] == [16, 16, 1]
    (run / "config.json").write_text(json.dumps(record))
    evaluate.main([str(run)])
    assert capsys.readouterr().out == shown


def test_another_test_under_the_same_name_is_refused(run, images, tmp_path, capsys):
    content = evaluated(run, "--name=mine", "--tasks=5", "--no-ensemble")
    assert content["result"]["test_tasks"] == content["settings"]["tasks"] == 5
    assert not any("ensemble_accuracy" in seed for seed in content["result"]["seeds"])
    before = everything(run)
    line = refused(capsys, evaluate.main, [run, "--name=mine", "--tasks=6", "--no-ensemble"])
    assert "mine.json holds a test with other settings; give another --name" in line
    other = shutil.copytree(images, tmp_path / "other")
    picture = other / "test" / "test0" / "0.png"
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    same = [run, "--name=mine", "--tasks=5", "--no-ensemble", "--data-dir", other]
    assert "mine.json holds a test on other data" in refused(capsys, evaluate.main, same)
    assert everything(run) == before
    for damage in ("{", "[1]", json.dumps({"settings": content["settings"]})):
        (run / "evaluations" / "mine.json").write_text(damage)
        line = refused(capsys, evaluate.main, [run, "--name=mine", "--tasks=5", "--no-ensemble"])
        assert "mine.json" in line
        assert (run / "evaluations" / "mine.json").read_text() == damage


def test_a_grey_network_gets_colour_images_as_grey(run, tmp_path):
    colour = write_images(tmp_path / "colour", channels=3, splits=("test",))
    for path in colour.rglob("*.png"):  # by Pillow's own conversion
        grey = tmp_path / "grey" / path.relative_to(colour)
        grey.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").save(grey)
    results = [
        evaluated(run, f"--data-dir={tmp_path / name}", f"--name={name}", "--tasks=20")
        for name in ("colour", "grey")
    ]
    assert results[0]["result"] == results[1]["result"]
    own = json.loads((run / "result.json").read_text())
    assert results[0]["result"]["seeds"][0]["loss"] != own["seeds"][0]["loss"]


REFUSED = {
    "too many ways": (["--ways=3"], "--ways must be at most 2, the network's outputs, got 3"),
    "too few images": (["--shots=3"], "shots + query_shots must be at most 4"),
    "no tasks": (["--tasks=0"], "--tasks must be 1 or more, got 0"),
    "unknown dataset": (["--dataset=imagenet"], "there is no dataset 'imagenet'"),
    "no data": (["--data-dir=/nowhere"], "/nowhere"),
    "a slash": (["--name=a/b"], "--name must be a file name"),
    "long name": ([f"--name={300 * 'n'}"], "--name must be a file name"),
    "two datasets": (["--dataset", "folder", "glyphs", "--name=a"], "for one --dataset"),
    "split": (["--split=all"], "--split"),
}


@pytest.mark.parametrize(("args", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_tested_is_one_line(args, message, finished, capsys):
    assert message in refused(capsys, evaluate.main, [finished, *args])
    assert not (finished / "evaluations").exists()


def test_too_few_classes(finished, images, tmp_path, capsys):
    shutil.copytree(images / "test" / "test0", tmp_path / "test" / "test0")
    line = refused(capsys, evaluate.main, [finished, f"--data-dir={tmp_path}"])
    assert "ways must be at most 1, the classes; got 2" in line


def rewrite(run, change):
    record = json.loads((run / "config.json").read_text())
    change(record)
    (run / "config.json").write_text(json.dumps(record))


DAMAGED = {
    "unfinished": (lambda run: (run / "result.json").unlink(), "is not finished"),
    "result": (lambda run: (run / "result.json").write_text("{"), "result.json cannot be read"),
    "another family": (
        lambda run: rewrite(run, lambda x: x.update(experiment="online")),
        "is not a run of fewshot",
    ),
    "images": (lambda run: rewrite(run, lambda x: x.update(images=3)), "config.json has contents"),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint"),
    "absent": (shutil.rmtree, "holds no run"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_run_that_cannot_be_read_is_one_line(damage, message, run, capsys):
    damage(run)
    assert message in refused(capsys, evaluate.main, [run])
    assert not (run / "evaluations").exists()
