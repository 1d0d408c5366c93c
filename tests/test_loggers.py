"""Loggers of runs: what TensorBoard, Weights & Biases and MLflow are sent."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from logger_readers import items, mlflow_run, wandb_history, wandb_records
from processes import outcome
from small_runs import flags, images, quick, refused  # noqa: F401
from test_run_folder import events

from experiments import fewshot, loggers
from experiments.loggers import LoggerFlags, Loggers
from experiments.loggers import loggers as sending
from jaxsparse.training import Hooks, RunError, RunFolder, processes

ROOT = Path(__file__).resolve().parent.parent
RECORD = {"experiment": "fewshot", "config": {"shots": 5}, "versions": {"jax": "1"}}


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Nothing is sent: W&B writes files, MLflow a database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        yield


class Killed(BaseException):
    """The process ends, as by SIGKILL."""


def kill_after(monkeypatch, epoch):
    """Let a run end when it goes on after this epoch."""

    def progress(report, progress):
        if progress.epoch == epoch:
            raise Killed

    monkeypatch.setattr(fewshot.Report, "progress", progress)


@pytest.fixture(scope="module")
def logged(no_network, images, tmp_path_factory):  # noqa: F811
    """A run of two seeds, killed after epoch 2 and resumed from epoch 1, with figures."""
    run = tmp_path_factory.mktemp("logged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.runs.draw_missing", draw)
        with pytest.MonkeyPatch.context() as kill, pytest.raises(Killed):
            kill_after(kill, 2)
            fewshot.main([*flags(images, run), "--seeds=2", "--logger", "wandb", "mlflow"])
        shutil.rmtree(max((run / "checkpoints").iterdir(), key=lambda path: int(path.name)))
        fewshot.main([f"--resume={run}"])
    return run


def draw(family, folder, result):
    """Figures of one pixel."""
    from PIL import Image

    for name in family.FIGURES:
        Image.new("RGB", (1, 1)).save(folder.path / name)


def expected(run):
    """Step -> the metrics of the step, means over the seeds."""
    rows = {}
    for row in RunFolder(run).rows():
        sparsity = {f"sparsity/{name}": value for name, value in row.pop("sparsity").items()}
        values = {**row, **sparsity}
        rows[row["step"]] = {n: np.mean(values[n]) for n in values.keys() - {"epoch", "step"}}
    return rows


def test_mlflow_has_the_run_once(logged):
    client, run = mlflow_run(logged)
    assert run.info.status == "FINISHED"
    assert run.data.params["shots"] == "1" and run.data.params["method"] == "sparse-maml"
    assert run.data.params["record/experiment"] == "fewshot"
    got = {}
    for name in run.data.metrics:
        if not name.startswith("result/"):
            for point in client.get_metric_history(run.info.run_id, name):
                assert name not in got.setdefault(point.step, {}), "logged twice"
                got[point.step][name] = point.value
    assert got == expected(logged) and sorted(got) == [0, 3, 6, 9]
    result = RunFolder(logged).result()
    assert run.data.metrics["result/accuracy"] == result["accuracy"]
    figures = [file.path for file in client.list_artifacts(run.info.run_id, "figures")]
    assert figures == ["figures/curves.png", "figures/sparsity.png"]
    copy = client.download_artifacts(run.info.run_id, "result.json")
    assert json.loads(Path(copy).read_text()) == result


def test_wandb_has_the_run_once(logged):
    records = list(wandb_records(logged))
    runs = [record.run for record in records if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 1 and {run.project for run in runs} == {"jaxsparse"}
    config = items(runs[0].config.update)
    assert config["shots"] == 1 and config["record/experiment"] == "fewshot"
    history = {}
    for row in wandb_history(logged):
        metrics = {n: x for n, x in row.items() if n[0] != "_" and not n.startswith("figures/")}
        if metrics:
            assert row["_step"] not in history, "logged twice"
            history[row["_step"]] = metrics
    assert history == expected(logged) and list(history) == [0, 3, 6, 9]
    paths = {n for row in wandb_history(logged) for n in row if n.endswith("/path")}
    assert paths == {"figures/curves/path", "figures/sparsity/path"}
    summary = {}
    for record in records:
        summary |= items(record.summary.update)
    assert summary["result/accuracy"] == RunFolder(logged).result()["accuracy"]
    assert len(list(logged.glob("wandb/offline-run-*/files/media/images/figures/*.png"))) == 2


def test_loggers_change_no_result_and_may_be_left_out_or_added(logged, images):  # noqa: F811
    run = logged.with_name("plain")
    fewshot.main([*flags(images, run), "--seeds=2", "--logger", "none"])
    assert outcome(run) == outcome(logged)
    assert not list(run.glob("events*")) and not (run / "wandb").exists()
    fewshot.main([f"--resume={run}", "--logger", "tensorboard", "mlflow"])
    client, found = mlflow_run(run)
    steps = [point.step for point in client.get_metric_history(found.info.run_id, "loss")]
    assert steps == [3, 6, 9] and found.info.status == "FINISHED"
    assert loggers.of_run(run).logger == ("tensorboard", "mlflow")


# ---- flags


@pytest.mark.parametrize(
    "words, says",
    [
        (["none", "wandb"], "--logger none goes with no other logger, got none wandb"),
        (["wandb", "wandb"], "--logger must have different values, got wandb wandb"),
        ([], "--logger"),
        (["comet"], "comet"),
    ],
)
def test_invalid_loggers(words, says, images, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "run"
    assert says in refused(capsys, fewshot.main, [*flags(images, run), "--logger", *words])
    assert not run.exists()


@pytest.mark.parametrize(
    "name, module, title",
    [
        ("wandb", "wandb", "Weights & Biases"),
        ("mlflow", "mlflow", "MLflow"),
        ("mlflow", "sqlalchemy", "MLflow"),
    ],
)
def test_a_missing_package(name, module, title, images, tmp_path, capsys, monkeypatch):  # noqa: F811
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda m: None if m == module else find(m))
    run = tmp_path / "run"
    line = refused(capsys, fewshot.main, [*flags(images, run), "--logger", name])
    want = f"error: --logger {name} needs {title}; install it with: pip install -e '.[{name}]'"
    assert line == want and not run.exists()


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41b"])
def test_mlflow_refuses_folders_that_its_uri_cannot_name(name, tmp_path):
    folder = RunFolder.create(tmp_path / name / "run", RECORD)
    with pytest.raises(RunError, match="must have no"):
        log(folder, [1], names=("mlflow",))
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_an_unreadable_record(tmp_path):
    RunFolder.create(tmp_path / "run", RECORD)
    for text in ("[1]", "{", '{"loggers": 3}', '{"loggers": ["comet"]}', '{"wandb": {"id": 3}}'):
        (tmp_path / "run" / "loggers.json").write_text(text)
        with pytest.raises(RunError):
            loggers.of_run(tmp_path / "run")


# ---- errors of a service


class Fake:
    """A service that keeps what it is sent, and raises `error` in the method `fails`."""

    def __init__(self):
        self.fails, self.sent, self.runs, self.place = "", [], 0, "here"

    def __getattr__(self, name):
        def call(*args):
            if name == self.fails:
                raise ConnectionError(f"no\nnetwork for {name}")
            self.sent.append((name, *args))

        return call

    def open(self, run, known):
        if self.fails == "open":
            raise ConnectionError("no network")
        self.runs += known is None
        self.sent.append(("settings", run.settings))
        return known or "id"


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sending._SERVICES, "wandb", lambda: fake)
    return fake


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RECORD)
    folder.add_row(row(0))
    return folder


def row(epoch):
    return {"epoch": epoch, "step": 10 * epoch, "loss": [1.0, None] if epoch == 2 else [1.0, 3]}


def log(folder, epochs, finish=False, names=("wandb",)):
    """Log the rows of these epochs as a process would."""
    with Loggers(LoggerFlags(names)) as log:
        hooks = log.hooks(Hooks(), folder, lambda line: None)
        hooks.progress(None)
        for epoch in epochs:
            folder.add_row(row(epoch))
            hooks.row(row(epoch))
        if finish:
            folder.write_result({"accuracy": 0.5, "seeds": [{"accuracy": 0.5}], "part": "test"})
            log.finish(folder, folder.result(), [folder.path / "curves.png"])


def finish_again(folder):
    """Resume a finished run."""
    with Loggers(LoggerFlags(("wandb",))) as log:
        log.finish(folder, folder.result(), [])


def of(fake, kind):
    return [call[1:] for call in fake.sent if call[0] == kind]


def test_what_a_service_is_sent(fake, folder):
    log(folder, [1, 2], finish=True)
    assert fake.sent[0] == (
        "settings",
        {"shots": 5, "record/experiment": "fewshot"} | {"record/versions/jax": "1"},
    )
    (_, first), (step, second), (_, third) = of(fake, "scalars")
    assert step == 10 and first == second == {"loss": 2.0} and math.isnan(third["loss"])
    assert of(fake, "figure") == [(folder.path / "curves.png",)]
    assert of(fake, "result") == [(folder.path / "result.json", {"result/accuracy": 0.5})]
    assert of(fake, "close") == [("finished",)]
    fake.sent.clear()
    finish_again(folder)
    assert not fake.sent


@pytest.mark.parametrize("fails", ["open", "scalars", "figure", "result", "close"])
def test_an_error_of_a_service_is_one_warning_and_the_rest_is_sent_later(fake, folder, fails):
    log(folder, [1])
    fake.fails = fails
    with pytest.warns(UserWarning) as warned:
        log(folder, [2, 3], finish=True)
    (text,) = [str(warning.message) for warning in warned if "null" not in str(warning.message)]
    assert text.startswith("--logger wandb: no network") and "\n" not in text
    assert len(folder.rows()) == 4
    fake.fails = ""
    finish_again(folder)
    assert [step for step, _ in of(fake, "scalars")] == [0, 10, 20, 30]
    assert len(of(fake, "result")) == 1 and fake.runs == 1


def test_a_run_does_not_start_with_a_service_that_cannot_be_opened(fake, folder):
    fake.fails = "open"
    with pytest.raises(RunError, match="--logger wandb: no network"):
        log(folder, [1])


@pytest.mark.parametrize(
    "error, ending", [(SystemExit(143), "stopped"), (SystemExit(2), "failed"), (OSError, "failed")]
)
def test_how_a_run_ended(fake, folder, error, ending):
    with pytest.raises((SystemExit, OSError)), Loggers(LoggerFlags(("wandb",))) as log:
        log.hooks(Hooks(), folder, lambda line: None).progress(None)
        raise error
    assert of(fake, "close") == [(ending,)]


def test_only_the_first_process_logs(fake, folder, monkeypatch):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    log(folder, [1])
    assert not fake.sent and not (folder.path / "loggers.json").exists()


def test_tensorboard_gets_all_rows_of_a_run_that_began_without_it(folder):
    log(folder, [1], names=("none",))
    assert not events(folder.path)
    resumed = RunFolder.open(folder.path)
    with resumed.lock():
        resumed.keep_rows(1)
        log(resumed, [3], names=("tensorboard",))
    assert [e.step for e in events(folder.path) if e.summary.value] == [0, 10, 30]


# ---- in processes of their own

NO_IMPORT = """
import sys
from pathlib import Path
from experiments import fewshot, continual, online
from experiments.loggers import Loggers
from jaxsparse.training import Hooks, RunFolder
folder = RunFolder.create(Path(sys.argv[1]), {})
with Loggers() as log:
    hooks = log.hooks(Hooks(), folder, print)
    hooks.progress(None)
    folder.add_row({"epoch": 0, "step": 0})
    hooks.row({"epoch": 0, "step": 0})
    log.finish(folder, {}, [])
print(sorted({"wandb", "mlflow", "sqlalchemy"} & set(sys.modules)))
"""

NOT_LOGGED_IN = """
import sys
from pathlib import Path
from experiments.loggers.service import Run
from experiments.loggers.wandb import WeightsAndBiases
try:
    WeightsAndBiases().open(Run(Path(sys.argv[1]), "fewshot", {}), None)
except ConnectionError as error:
    print(error)
"""


def printed(program, path, **environment):
    """What a Python program prints."""
    command = [sys.executable, "-c", program, str(path)]
    names = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=ROOT, env=names, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.strip(), done.stderr


def test_clients_are_imported_only_when_asked_for(tmp_path):
    assert printed(NO_IMPORT, tmp_path / "run")[0] == "[]"
    assert not (tmp_path / "run" / "loggers.json").exists()


def test_wandb_without_a_login(tmp_path):
    places = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    text, errors = printed(NOT_LOGGED_IN, tmp_path, WANDB_MODE="online", WANDB_API_KEY="", **places)
    assert text == "not logged in; run `wandb login`, or set WANDB_MODE=offline" and not errors
