"""Sweeps: what may be searched, what a trial measures, and how it ends."""

import json
import re

import numpy as np
import pytest
from problems import quick_programs
from processes import recorded_loads

optuna = pytest.importorskip("optuna")

from experiments import cli, continual, fewshot, sweep  # noqa: E402
from experiments.sweep import flags, search  # noqa: E402
from experiments.sweep.samplers import make_sampler  # noqa: E402
from experiments.sweep.slots import Slots  # noqa: E402
from experiments.sweep.space import grid_points, parse_space  # noqa: E402
from jaxsparse.training import ConfigError, FewShotConfig  # noqa: E402
from jaxsparse.training.continual import ContinualConfig  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_programs")
RUN = ["--data=glyphs", "--tasks=2", "--samples-per-task=40", "--glances=1", "--width=8"]


def refused(capsys, *words):
    """The one line with which the command ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        sweep.main([str(word) for word in words])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


# ---- the space


def test_the_forms_of_a_space():
    space = parse_space(
        ["inner_lr=0.03:0.5:log", "mask-lr=0.1:1", "glances=5,10", "width=10:100:log"],
        ContinualConfig(),
    )
    floats, ints = optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution
    assert space == {
        "inner_lr": floats(0.03, 0.5, log=True),
        "mask_lr": floats(0.1, 1.0),
        "glances": optuna.distributions.CategoricalDistribution((5, 10)),
        "width": ints(10, 100, log=True),
    }
    assert all(type(value) is int for value in space["glances"].choices)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("inner_lr", "want NAME=LOW:HIGH"),
        ("inner_lr=", "want NAME=LOW:HIGH"),
        ("inner_lr=0.1:0.2:linear", "want NAME=LOW:HIGH"),
        ("inner_lr=0.1:0.2:log:3", "want NAME=LOW:HIGH"),
        ("inner_lr=0.1,x", "'x' is not a finite number"),
        ("inner_lr=nan:1", "'nan' is not a finite number"),
        ("inner_lr=1_0,2", "'1_0' is not a finite number"),
        ("inner_lr=1e999,2", "'1e999' is not a finite number"),
        ("inner_lr=0.5:0.1", "LOW must be below HIGH"),
        ("inner_lr=0.1:0.1", "LOW must be below HIGH"),
        ("inner_lr=0:0.1:log", "LOW must be above 0 with log, got 0"),
        ("inner_lr=0.1,0.10", "the values must be different"),
        ("inner_lr=-1,0.1", "inner_lr must be 0 or more, got -1.0"),
        ("glances=0:5", "glances must be 1 or more, got 0"),
        ("glances=1.5,2", "'1.5' is not a whole number below 2^31"),
        ("rate=0.1,0.2", "there is no setting 'rate'"),
        ("method=1,2", "only numbers are chosen, method is not a number"),
        ("second_order=0,1", "only numbers are chosen, second_order is not a number"),
        ("seed=0,1", "seed defines the problem and cannot be chosen"),
    ],
)
def test_a_space_that_cannot_be_used(word, message, tmp_path, capsys):
    line = refused(capsys, "continual", *RUN[:-1], "--out", tmp_path / "a", "--space", word)
    assert f"--space {word!r}" in line and message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--space inner_lr=0.1:0.2 inner_lr=1,2", "inner_lr is given twice"),
        ("--trials 4", "--space must name at least one setting"),
        ("--space inner_lr=0.1:0.2 --sampler grid", "grid needs values"),
        ("--space inner_lr=0.1,0.2 --sampler grid --trials 3", "the grid's 2 points, got 3"),
        ("--space inner_lr=0.1:0.2 --trials 0", "--trials must be 1 or more, got 0"),
        ("--space inner_lr=0.1:0.2 --batch 0", "--batch must be 1 or more, got 0"),
        ("--space inner_lr=0.1:0.2 --trial-seeds 2", "at most --seeds 1, got 2"),
        ("--space inner_lr=0.1:0.2 --sampler cma", "invalid choice 'cma'"),
        ("--space inner_lr=0.1:0.2 --inner-lr 1", "--inner-lr is chosen by --space"),
        ("--space inner_lr=0.1:0.2 --validation", "--validation is set by the sweep"),
        ("--space theta_lr=0.1:0.2", "--theta-lr is read only with --method"),
        ("--space mask_lr=0.1,1 --method cmaml-sync", "--mask-lr is read only with --method"),
        ("--space inner_lr=0.1:0.2 --margin 1", "--margin is read only with --method gem"),
        ("--space inner_lr=0.1:0.2 --study a/b", "--study must be a name without /"),
        ("--space inner_lr=0.1:0.2 --storage file.db", "--storage must be a URL"),
        ("--space inner_lr=0.1:0.2 --storage nodb://x/y", "--storage nodb://x/y"),
        (
            "--space inner_lr=0.1:0.2 --storage sqlite:////nowhere/x.db",
            "--storage sqlite:////nowhere/x.db: unable to open database file",
        ),
    ],
)
def test_flags_that_cannot_be_used(words, message, tmp_path, capsys):
    line = refused(capsys, "continual", *RUN, "--out", tmp_path / "a", *words.split())
    assert message in line
    assert not list(tmp_path.iterdir())


def test_the_first_word_names_a_family(capsys):
    assert "must be one of continual, fewshot, online, got nothing" in refused(capsys)
    assert "got '--space'" in refused(capsys, "--space", "inner_lr=1,2")


@pytest.mark.parametrize("family", flags.FAMILIES)
def test_the_help_explains_the_flags(family, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.main([family, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "trials that a worker takes at a time" in " ".join(text.replace("│", " ").split())


def test_without_optuna_there_is_one_line(monkeypatch, capsys):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name)
    )
    line = refused(capsys, "continual", "--trials", "0")
    assert (
        line == "error: experiments.sweep needs Optuna; install it with: pip install -e '.[sweep]'"
    )


def test_a_password_is_not_shown(tmp_path, capsys):
    url = "postgresql+nodriver://me:secret@host/db"
    words = ["--space", "inner_lr=0.1:0.2", "--storage", url, "--out", tmp_path / "a"]
    line = refused(capsys, "continual", *RUN, *words)
    assert "secret" not in line and "me:***@host" in line


def test_a_grid_has_each_combination_once():
    space = parse_space(["inner_lr=0.1,0.2,0.3", "glances=5,10"], ContinualConfig())
    points = grid_points(space)
    assert len({tuple(point.items()) for point in points}) == len(points) == 6
    with pytest.raises(ConfigError, match="got a range"):
        grid_points(parse_space(["inner_lr=0.1:0.2"], ContinualConfig()))


# ---- the samplers


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_two_samplers_of_one_seed_draw_different_points(name):
    space = parse_space(["inner_lr=0.03:0.5:log"], ContinualConfig())
    storage = optuna.storages.InMemoryStorage()
    drawn = []
    for _ in range(2):  # two workers
        study = optuna.create_study(
            storage=storage, study_name="a", load_if_exists=True, direction="maximize",
            sampler=make_sampler(name, 0),
        )  # fmt: skip
        trials = Slots(study, [{}] * 30, space).take(15)
        drawn += [trial.params["inner_lr"] for trial in trials]
    assert len(set(drawn)) == 30


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_one_worker_draws_the_same_points_again(name):
    def points(seed):
        space = parse_space(["inner_lr=0.03:0.5:log", "glances=5,10"], ContinualConfig())
        study = optuna.create_study(direction="maximize", sampler=make_sampler(name, seed))
        slots = Slots(study, [{}] * 24, space)
        while taken := slots.take(4):
            for trial in taken:
                slots.finish(trial, -abs(trial.params["inner_lr"] - 0.1))
        return [trial.params for trial in study.trials]

    assert points(0) == points(0) != points(1)


# ---- a whole sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished grid of four points, and for which data it was read."""
    out = tmp_path_factory.mktemp("sweep") / "a"
    words = ["--space", "inner_lr=0.0,0.1", "glances=1,2", "--sampler", "grid", "--batch", "4"]
    run = [word for word in RUN if "glances" not in word]
    with recorded_loads(continual) as read, quick_programs():
        sweep.main(["continual", *run, *words, "--seeds", "2", "--out", str(out)])
    return out, read


def trials_of(out):
    return json.loads((out / "trials.json").read_text())["trials"]


def test_trials_never_read_the_test_images(swept):
    out, read = swept
    assert read[-1] is False and all(read[:-1])  # only the winner's run reads them
    for path in (out / "trials").iterdir():
        assert json.loads((path / "config.json").read_text())["config"]["validation"]


def test_the_winner_has_the_best_values_and_all_seeds(swept):
    out, _ = swept
    trials = trials_of(out)
    assert len(trials) == 4 and all(trial["state"] == "COMPLETE" for trial in trials)
    best = max(trials, key=lambda trial: trial["value"])
    assert best["params"]["inner_lr"] == 0.1  # a learner that does not move retains nothing
    (winner,) = out.glob("winner-*")
    record = json.loads((winner / "config.json").read_text())
    assert record["sweep"]["trial"] == best["trial"]
    assert {name: record["config"][name] for name in best["params"]} == best["params"]
    result = json.loads((winner / "result.json").read_text())
    assert result["part"] == "test" and len(result["seeds"]) == 2


def test_rates_share_a_program_and_counts_do_not(swept):
    out, _ = swept
    groups = [json.loads((p / "config.json").read_text()) for p in (out / "trials").iterdir()]
    assert sorted(len(group["trials"]) for group in groups) == [2, 2]
    for group in groups:
        assert {trial["glances"] for trial in group["trials"]} == {group["config"]["glances"]}


def test_the_value_is_that_of_a_run_with_these_settings(swept, tmp_path):
    out, _ = swept
    for trial in (trials_of(out)[0], trials_of(out)[-1]):
        alone = tmp_path / str(trial["trial"])
        values = [f"--{name.replace('_', '-')}={v}" for name, v in trial["params"].items()]
        run = [word for word in RUN if "glances" not in word]
        continual.main([*run, *values, "--validation", "--out", str(alone)])
        result = json.loads((alone / "result.json").read_text())
        assert trial["value"] == pytest.approx(result["retained_accuracy"]["mean"], abs=1e-6)


def test_the_figures_are_drawn(swept):
    out, _ = swept
    for name in ("importance.png", "contour.png"):
        assert (out / name).stat().st_size > 1000


def test_another_sweep_cannot_use_the_folder_or_the_study(swept, capsys):
    out, _ = swept
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    words = ["continual", *RUN, "--space", "inner_lr=0.0,0.2", "--sampler", "grid"]
    assert "holds another sweep" in refused(capsys, *words, "--out", out)
    name = json.loads((out / "sweep.json").read_text())["study"]
    line = refused(capsys, *words, "--study", name, "--out", out)
    assert "is another sweep" in line and "space" in line
    assert before == {path: path.read_bytes() for path in out.rglob("*.json")}


def test_hopeless_trials_are_pruned(tmp_path, monkeypatch, capsys):
    # Accuracies are at most 1, so all trials are hopeless after their first task.
    pruner = optuna.pruners.ThresholdPruner(lower=1.1)
    monkeypatch.setattr(search, "MedianPruner", lambda **unused: pruner)
    out = tmp_path / "a"
    words = ["--space", "inner_lr=0.1,0.2", "--sampler", "grid", "--out", out]
    line = refused(capsys, "continual", *RUN, *words)
    assert "no trial has a value" in line
    assert [trial["state"] for trial in trials_of(out)] == ["PRUNED", "PRUNED"]
    (folder,) = (out / "trials").iterdir()
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2  # before training and after the first of two tasks
    assert not list(out.glob("winner-*"))


def test_a_few_shot_trial_is_tested_on_validation_images():
    tuned = flags.FAMILIES["fewshot"]()
    images = {"train": "a", "validation": "b", "test": "c"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fewshot, "load_data", lambda config: images)
        data = tuned.load_data(tuned.held_out(FewShotConfig(), 1))
    assert data == {"train": "a", "validation": "b", "test": "b"}


def test_intermediate_values_are_means_over_seeds_and_tasks():
    tuned = flags.FAMILIES["continual"]()
    accuracy = np.array([[0.1, 0.3, 0.5, 0.7], [0.2, 0.4, 0.6, float("nan")]])  # [task, run]
    row = {"task": 2, "test_accuracy": {f"task {j}": list(accuracy[j]) for j in range(2)}}
    row["test_accuracy"]["task 2"] = [9.0] * 4  # not learned yet
    place, values = tuned.so_far(row, 2)
    assert place == 2
    assert values == pytest.approx([0.25, (0.6 + 0.3) / 2])


def test_the_command_line_of_the_docs_parses():
    words = sweep.__doc__.splitlines()
    lines = [re.sub("^python -m experiments.sweep ", "", w) for w in words if "python" in w]
    for line in lines:
        assert flags.parse(line.split()).points
