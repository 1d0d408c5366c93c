"""Test a finished few-shot run again: on other data, other tasks, or with other statistics.

python -m experiments.evaluate runs/fewshot/NAME
python -m experiments.evaluate runs/fewshot/NAME --dataset mnist fashion_mnist omniglot
"""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments import cli, fewshot, runs
from experiments.report import plus_minus
from jaxsparse import data
from jaxsparse.training import FewShotConfig, RunError, writing
from jaxsparse.training.environment import environment, use_threads_of
from jaxsparse.training.errors import reading, trusting
from jaxsparse.training.fewshot.evaluate import Test, evaluate_run
from jaxsparse.training.fewshot.evaluation import TaskSizes
from jaxsparse.training.fewshot.tested import Finished, finished, load_tested
from jaxsparse.training.files import replace_text

PROG = "python -m experiments.evaluate"
FOLDER = "evaluations"
_NAME = re.compile(r"[A-Za-z0-9_.,=+-]{1,100}")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Test a finished few-shot run again. What is not given is as in the run."""

    run: tyro.conf.Positional[Path]
    """folder of the run, a file of weights, or the name of weights that come with jaxsparse"""
    dataset: tuple[str, ...] = ()
    """datasets to test on; their images are brought to the network's size, channels and
    normalisation"""
    data_dir: str | None = None
    """folder of the data; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    split: Literal["train", "validation", "test"] = "test"
    """split of the dataset"""
    ways: int | None = None
    """classes per task, at most the outputs of the network"""
    shots: int | None = None
    """support images per class"""
    query_shots: int | None = None
    """query images per class"""
    test_inner_steps: int | None = None
    """K"""
    tasks: int | None = None
    """number of tasks"""
    batch_norm: Literal["transductive", "support", "running"] | None = None
    """statistics that normalise the query images; see experiments.fewshot --help"""
    ensemble: bool = True
    """test the ensemble, too, if the run has one"""
    name: str | None = None
    """name of the file in RUN/evaluations, for weights in evaluations/WEIGHTS; default: one made of
    the settings"""


def main(args: Sequence[str] | None = None) -> None:
    """Read the flags, test, write and print the results."""
    with cli.command():
        flags = cli.parse(Flags, sys.argv[1:] if args is None else args, _DEFAULTS, PROG)
        run = finished(runs.user_path("RUN", flags.run))
        config = run.config
        datasets = flags.dataset or (config.dataset,)
        if flags.name is not None and (len(datasets) > 1 or not _NAME.fullmatch(flags.name)):
            want = "up to 100 letters, digits and _.,=+-"
            cli.fail(f"--name must be a file name ({want}), for one --dataset, got {flags.name!r}")
        for name in ("ways", "shots", "query_shots", "test_inner_steps", "tasks"):
            if (value := getattr(flags, name)) is not None and value < 1:
                cli.fail(f"--{name.replace('_', '-')} must be 1 or more, got {value}")
        use_threads_of(run.record)
        cli.use_cores(fewshot.cores(config))
        cli.use_compilation_cache()
        cli.start_backend()
        test = test_of(flags, config)
        images = image_format(run)
        results = {
            dataset: evaluation(run, images, dataset, test, flags.data_dir, flags.name)
            for dataset in datasets
        }
        cli.say("\n".join(table(results)))


_DEFAULTS: Any = Flags(Path())


def test_of(flags: Flags, config: FewShotConfig) -> Test:
    """The test that the flags describe."""

    def given(name: str, own: Any) -> Any:
        value = getattr(flags, name)
        return own if value is None else value

    sizes = TaskSizes(
        given("ways", config.ways),
        given("shots", config.shots),
        given("query_shots", config.query_shots),
        given("test_inner_steps", config.test_inner_steps),
    )
    if sizes.ways > config.ways:
        cli.fail(f"--ways must be at most {config.ways}, the network's outputs, got {sizes.ways}")
    tasks, batch_norm = given("tasks", config.test_tasks), given("batch_norm", config.batch_norm)
    return Test(flags.split, sizes, tasks, batch_norm, flags.ensemble and config.ensemble > 1)


def image_format(run: Finished) -> dict[str, Any]:
    """The shape and normalisation of the images of a run; older runs do not record them."""
    stored = run.record.get("images")
    if stored is None:
        return fewshot.image_format(fewshot.load_data(run.config)["train"])
    with trusting(run.record_path):
        scale = {name: [float(x) for x in stored[name]] for name in ("mean", "std")}
        return {"shape": [int(size) for size in stored["shape"]], **scale}


def evaluation(
    run: Finished,
    images: dict[str, Any],
    dataset: str,
    test: Test,
    data_dir: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """The result of a test of a run; one that is there is not computed again.

    Raises:
      RunError: the file holds a test with other settings or on other data.
      DataError: the dataset is not there, or too small.
    """
    settings, config = _settings(dataset, test), run.config
    place = run.path / FOLDER if run.weights is None else Path(FOLDER, run.path.stem)
    path = place / f"{name or name_of(dataset, test)}.json"
    own = dataset == config.dataset
    loaded = data.load(
        dataset,
        test.split,
        data_dir=data_dir or (config.data_dir if own else None),
        image_size=config.image_size if own else None,
    )
    data.check_episode(loaded, test.sizes.ways, test.sizes.shots, test.sizes.query_shots)
    shape = tuple(images["shape"])
    converted = data.convert(loaded, shape, images["mean"], images["std"])
    digest = data.fingerprint(converted)
    if (there := stored(path, dataset, test)) is not None:
        with trusting(path):
            if there["data"] != digest:
                raise RunError(f"{path} holds a test on other data; give another --name")
            if there.get("weights") != _digest(run):
                raise RunError(f"{path} holds a test of other weights; give another --name")
        return there
    tested = load_tested(run, shape)
    result = {
        "settings": settings,
        "data": digest,
        **({} if run.weights is None else {"weights": _digest(run)}),
        **environment(config.blocks),
        "result": evaluate_run(tested, converted, test),
    }
    with writing(path):
        path.parent.mkdir(parents=run.weights is not None, exist_ok=True)
        replace_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _digest(run: Finished) -> str | None:
    """What identifies a file of weights; None for a folder, which holds its own evaluations."""
    return None if run.weights is None else run.weights.digest


def stored(path: Path, dataset: str, test: Test) -> dict[str, Any] | None:
    """The result of this test in a file; None if there is no file.

    Raises:
      RunError: the file cannot be read, or holds a test with other settings.
    """
    with reading(path):
        there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if there is None:
        return None
    with trusting(path):
        if there["settings"] != _settings(dataset, test):
            raise RunError(f"{path} holds a test with other settings; give another --name")
        table({dataset: there})  # fails here if an entry is missing
    return there


def _settings(dataset: str, test: Test) -> dict[str, Any]:
    """What a test depends on, as JSON."""
    settings = {"dataset": dataset, **test._asdict(), **test.sizes._asdict()}
    del settings["sizes"]
    return settings


def name_of(dataset: str, test: Test) -> str:
    """The default name of the file of a test."""
    s = _settings(dataset, test)
    ensemble = "-ensemble" if s["ensemble"] else ""
    return (
        f"{s['dataset']}-{s['split']}-{s['ways']}way-{s['shots']}shot-{s['query_shots']}query"
        f"-K{s['inner_steps']}-{s['tasks']}tasks-{s['batch_norm']}{ensemble}"
    )


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Accuracy in % of each dataset, mean +- std over seeds, or +- 95% interval of one seed."""
    lines = ["| dataset | accuracy | ensemble | tasks | seeds |", "|---|---|---|---|---|"]
    for dataset, content in results.items():
        result = content["result"]
        cells = [_cell(result, prefix) for prefix in ("", "ensemble_")]
        seeds = len(result["seeds"])
        lines.append(f"| {dataset} | {' | '.join(cells)} | {result['test_tasks']} | {seeds} |")
    return lines


def _cell(result: dict[str, Any], prefix: str) -> str:
    mean, std = (result.get(f"{prefix}{n}") for n in ("accuracy", "accuracy_std_over_seeds"))
    if mean is None:
        return "-"
    interval = result["seeds"][0][f"{prefix}interval95"]
    return plus_minus(mean, interval if std is None else std)


if __name__ == "__main__":
    main()
