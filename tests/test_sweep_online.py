"""Sweeps over online learning: trials have streams that the winner never sees."""

import json

import pytest

pytest.importorskip("optuna")

from experiments import online, sweep
from experiments.sweep import flags
from jaxsparse.training import ConfigError
from jaxsparse.training.online import OnlineConfig

RUN = ["--data=glyphs", "--method=online-adam", "--timesteps=40", "--log-every=20", "--ways=3",
       "--shots=2", "--width=8"]  # fmt: skip


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a finished grid of two points."""
    out = tmp_path_factory.mktemp("sweep") / "a"
    words = ["--space", "theta_lr=0.0,0.01", "--sampler", "grid", "--out", str(out)]
    sweep.main(["online", *RUN, *words, "--seed", "3", "--seeds", "2"])
    return out


@pytest.mark.slow
def test_trials_have_other_seeds_than_the_run(swept):
    records = [read(path / "config.json") for path in (swept / "trials").iterdir()]
    assert len(records) == 2  # a program each
    for record in records:
        assert (record["config"]["seed"], record["config"]["seeds"]) == (1_000_003, 1)
    (winner,) = swept.glob("winner-*")
    config = read(winner / "config.json")["config"]
    assert (config["seed"], config["seeds"], config["theta_lr"]) == (3, 2, 0.01)
    seeds = read(winner / "result.json")["seeds"]
    assert [seed["seed"] for seed in seeds] == [3, 4]


@pytest.mark.slow
def test_the_value_is_that_of_a_run_on_the_other_stream(swept, tmp_path):
    alone = tmp_path / "alone"
    online.main([*RUN, "--seed=1000003", "--theta-lr=0.01", f"--out={alone}"])
    (trial,) = [
        trial for trial in read(swept / "trials.json")["trials"]
        if trial["params"]["theta_lr"] == 0.01
    ]  # fmt: skip
    assert trial["value"] == read(alone / "result.json")["accuracy"]["mean"]
    own = read(next(swept.glob("winner-*")) / "result.json")["accuracy"]["mean"]
    assert trial["value"] != own


def test_intermediate_values_are_the_accuracy_so_far():
    tuned = flags.FAMILIES["online"]()
    assert tuned.so_far({"interval": 0, "sparsity": None}, 1) == (0, [])
    assert tuned.so_far({"epoch": 2, "val_accuracy": 0.5}, 1) == (0, [])  # pretraining
    row = {"interval": 3, "accuracy": [0.25, 0.5], "interval_accuracy": [1.0, 1.0]}
    assert tuned.so_far(row, 1) == (3, [0.375])


def test_what_defines_the_stream_is_not_chosen(tmp_path, capsys):
    for name in ("timesteps", "seed", "shots"):
        with pytest.raises(SystemExit) as stop:
            sweep.main(["online", *RUN, "--space", f"{name}=2,3", f"--out={tmp_path / 'a'}"])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and f"{name} defines the problem" in line
    with pytest.raises(ConfigError, match="seed must lie in"):
        flags.FAMILIES["online"]().held_out(OnlineConfig(seed=2**31 - 2), 1)
