"""Runs on streams that are killed at random moments end with the bits of one that was not."""

import json

import pytest
from processes import finish, kill_at_random, outcome

RUNS = {
    "continual": [
        *("--data=glyphs", "--tasks=12", "--samples-per-task=400", "--glances=150", "--width=16"),
        *("--memories=50", "--seeds=2"),
    ],
    "online": [
        *("--data=glyphs", "--timesteps=4000", "--ways=3", "--shots=2", "--width=8"),
        *("--inner-steps=4", "--p=0.9", "--seeds=2"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", RUNS)
def test_killed_twenty_times_a_stream_ends_the_same(experiment, tmp_path):
    flags, whole, run = RUNS[experiment], tmp_path / "whole", tmp_path / "run"
    finish(experiment, [*flags, f"--out={whole}"], save_seconds=0.3)
    kill_at_random(
        experiment, [*flags, f"--out={run}"], run, kills=20, longest=15.0, save_seconds=0.3
    )
    positions = [int(path.name) for path in (run / "checkpoints").iterdir()]
    assert positions, "every kill fell before the first checkpoint"
    finish(experiment, [f"--resume={run}"], save_seconds=0.3)
    assert outcome(run) == outcome(whole)
    assert json.loads((run / "config.json").read_text())["config"]["seeds"] == 2
