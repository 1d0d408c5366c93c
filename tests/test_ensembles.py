"""Ensembles of the best epochs: which are kept, how they vote, what a run writes about them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import below, flags, images, newest, quick, refused, small_model

from experiments import fewshot
from jaxsparse import data, training
from jaxsparse.maml import predict
from jaxsparse.training.fewshot.config import make_learner
from jaxsparse.training.fewshot.evaluation import TaskSizes, make_evaluation
from jaxsparse.training.fewshot.program import Best, _insert

assert images and quick and small_model  # fixtures


# The validation accuracies of epochs 1, 2, ..., and the epochs kept after each.
HISTORIES = {
    "rising": ([0.2, 0.4, 0.6, 0.8], [[1], [2, 1], [3, 2, 1], [4, 3, 2]]),
    "falling": ([0.8, 0.6, 0.4, 0.2], [[1], [1, 2], [1, 2, 3], [1, 2, 3]]),
    "ties": ([0.5, 0.5, 0.7, 0.5, 0.7], [[1], [1, 2], [3, 1, 2], [3, 1, 2], [3, 5, 1]]),
    "not a number": ([np.nan, 0.3, np.nan, 0.1], [[], [2], [2], [2, 4]]),
    "in the middle": ([0.9, 0.1, 0.5, 0.3], [[1], [1, 2], [1, 3, 2], [1, 3, 4]]),
    "none right": ([0.0, 0.0], [[1], [1, 2]]),
}


@pytest.mark.parametrize(("accuracies", "kept"), HISTORIES.values(), ids=HISTORIES)
def test_the_best_epochs_are_kept_in_order(accuracies, kept):
    def best(accuracy, epoch):
        return Best({"w": jnp.float32(epoch)}, [jnp.float32(-epoch)], accuracy, jnp.int32(epoch))

    members = [best(jnp.float32(-1.0), 0)] * 3
    for epoch, (accuracy, wanted) in enumerate(zip(accuracies, kept, strict=True), start=1):
        members = _insert(best(jnp.float32(accuracy), epoch), members)
        wanted = [*wanted, 0, 0, 0][:3]
        assert [int(member.epoch) for member in members] == wanted
        for member, number in zip(members, wanted, strict=True):  # each with its own parameters
            assert float(member.params["w"]) == number == -float(member.mask[0])
            if number:
                assert member.accuracy == np.float32(accuracies[number - 1])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_an_ensemble_votes_by_the_mean_softmax():
    config = training.FewShotConfig(ways=3, width=2, seed=0)
    parts = make_learner(config, (16, 16, 1))
    sizes = TaskSizes(ways=3, shots=2, query_shots=5, inner_steps=2)
    evaluation = make_evaluation(parts, sizes, config.precision)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4 * 8, 16, 16, 1), dtype=np.uint8)
    counts, names = np.full(4, 8), ("a", "b", "c", "d")
    pictures = data.ImageSet(pixels, counts, names, (0.5,), (0.3,))
    key = jax.random.key(5)
    tasks = evaluation.tasks(key, pictures)
    members = []
    for i, scale in enumerate((1.0, 4.0, 2.0)):  # the second is the most confident
        params = jax.tree.map(lambda x, s=scale: s * x, parts.model.init(jax.random.key(i)))
        members.append((params, parts.gate.init(jax.random.key(10 + i), params)))
    got = evaluation.vote(members, key, tasks)["ensemble_accuracy"]
    logits = [
        np.float64(
            predict(
                *(params, parts.gate.apply(mask, None), tasks),
                loss_fn=parts.loss_fn,
                inner_steps=2,
            )
        )
        for params, mask in members
    ]
    labels = np.asarray(tasks.query[1])

    def accuracy(scores):
        return (scores.argmax(-1) == labels).mean(-1)

    want = accuracy(sum(map(softmax, logits)) / 3)
    np.testing.assert_allclose(got, want, atol=1e-6)
    # Other votes and single members give other accuracies here.
    others = [sum(logits), *logits, sum(map(softmax, logits[:2]))]
    assert all(np.abs(accuracy(other) - want).max() > 0.01 for other in others)


def test_a_run_tests_its_best_epochs(images, tmp_path, capsys):
    run = tmp_path / "run"
    fewshot.main([*flags(images, run), "--epochs=4", "--ensemble=3", "--seeds=2"])
    printed = capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())
    rows = training.RunFolder(run).rows()
    arrays = newest(run)
    for i, seed in enumerate(result["seeds"]):
        accuracy = [row["val_accuracy"][i] for row in rows[1:]]
        order = sorted(range(4), key=lambda e: (-accuracy[e], e))[:3]  # the earlier of a tie
        stored = [arrays[f"{where}.epoch"][i] for where in ("best", *RUNNERS_UP)]
        assert stored == [e + 1 for e in order]
        assert seed["best_epoch"] == order[0] + 1
        assert 0 <= seed["ensemble_accuracy"] <= 1 and seed["ensemble_interval95"] > 0
        assert f"{100 * seed['ensemble_accuracy']:.2f}%" in printed
    values = [seed["ensemble_accuracy"] for seed in result["seeds"]]
    assert result["ensemble_accuracy"] == pytest.approx(np.mean(values))
    assert result["ensemble_accuracy_std_over_seeds"] == pytest.approx(np.std(values, ddof=1))
    assert "seed 1: ensemble of 3:" in printed and "2 seeds, ensembles of 3:" in printed


RUNNERS_UP = ("runners_up.0", "runners_up.1")


@pytest.mark.slow
def test_a_run_without_an_ensemble_is_stored_as_before(images, tmp_path, capsys):
    run = tmp_path / "run"
    fewshot.main([*flags(images, run), "--ensemble=1", "--schedule=constant"])
    assert "ensemble of" not in capsys.readouterr().out
    assert "ensemble" not in (run / "result.json").read_text()
    arrays = newest(run)
    layers = {f"{a}.{b}" for a in ("conv1", "head") for b in ("kernel", "bias")}
    assert set(below(arrays, "best")) == (
        {f"{tree}.{name}" for tree in ("params", "mask") for name in layers} | {"accuracy", "epoch"}
    )
    others = {name for name in arrays if not name.startswith(("best.", "meta."))}
    totals = {f"totals.{name}" for name in ("loss", "accuracy", "sparsity")}
    assert others == {"epoch", "bad_step"} | totals
    mask_state = {n for n in below(arrays, "meta") if "mask" in n and "opt" in n}
    theta_state = {n for n in below(arrays, "meta") if "opt" in n} - mask_state
    # Adam's count, mu and nu; theta's is nested in a chain with the clipping.
    assert len(mask_state) == len(theta_state) == 1 + 2 * len(layers)
    assert all(".1.0." in name for name in theta_state)
    assert not any(".1.0." in name for name in mask_state)


def test_more_members_than_epochs_are_refused(images, tmp_path, capsys):
    line = refused(capsys, fewshot.main, [*flags(images, tmp_path / "run"), "--ensemble=4"])
    assert "ensemble must be at most epochs, 3, got 4" in line
    assert not (tmp_path / "run").exists()
