"""One definition of the standard deviation over seeds, in all tables and figures."""

import math
import statistics

import numpy as np
import pytest

from experiments.drawing import band
from experiments.fewshot.report import FewShotReport
from experiments.tables.markdown import comparison
from jaxsparse.training import FewShotConfig
from jaxsparse.training.continual import ContinualConfig
from jaxsparse.training.continual.result import make_result as continual_result
from jaxsparse.training.fewshot.result import accuracies
from jaxsparse.training.fewshot.result import make_result as fewshot_result
from jaxsparse.training.online.result import over_seeds
from jaxsparse.training.statistics import mean_and_std

VALUES = [0.61, 0.64, 0.7]  # of three seeds; population and sample differ by a quarter
STD = statistics.stdev(VALUES)


def test_mean_and_std_are_those_of_a_sample():
    assert mean_and_std(VALUES) == {"mean": pytest.approx(0.65), "std": pytest.approx(STD)}
    assert mean_and_std(np.array(VALUES)) == mean_and_std(VALUES)
    assert mean_and_std([0.3]) == {"mean": 0.3, "std": None}
    assert all(math.isnan(x) for x in mean_and_std([0.3, math.nan]).values())


def test_few_shot_results_have_the_sample_std():
    accuracy = np.array([[v - 0.1, v, v + 0.1] for v in VALUES])
    best = type("Best", (), {"epoch": [0] * 3, "accuracy": [0.5] * 3})
    state = type("State", (), {"best": best})
    config = FewShotConfig(seeds=3)
    metrics = {"accuracy": accuracy, "loss": accuracy}
    result = fewshot_result(config, [{"sparsity": {"total": 0.0}}], state, metrics)
    assert result["accuracy"] == pytest.approx(0.65)
    assert result["accuracy_std_over_seeds"] == pytest.approx(STD)
    of_tasks = statistics.stdev([0.0, 0.1, 0.2])
    assert result["seeds"][0]["interval95"] == pytest.approx(1.96 * of_tasks / 3**0.5)


def test_a_comparison_with_one_seed_has_no_error():
    line = comparison("A is {} B", "accuracy", [{"accuracy": 0.75}], [{"accuracy": 0.5}])
    assert line == "- A is not significantly different from B: +25.00 points, one seed."


def test_one_task_has_no_interval(tmp_path):
    one = np.array([[0.7]])
    result = accuracies(0, {"accuracy": one, "loss": one, "ensemble_accuracy": one})
    (seed,) = result["seeds"]
    assert seed["interval95"] is seed["ensemble_interval95"] is None
    assert result["interval95_over_tasks"] is None
    seed["best_epoch"] = 1
    report = FewShotReport(FewShotConfig(ensemble=3, epochs=4), tmp_path)
    assert report.headline(result) == "test accuracy 70.00% (95% interval over 1 tasks)"
    assert report.lines(result) == [
        "seed 0: test accuracy 70.00% (95% over 1 tasks), epoch 1 of 4",
        "seed 0: ensemble of 3: 70.00%",
    ]


def test_stream_results_have_the_sample_std():
    config = ContinualConfig(seeds=3, tasks=1)
    accuracy = np.array([[[0.1], [v]] for v in VALUES], np.float32)
    rows = [{"sparsity": {"total": VALUES}}]
    result = continual_result(config, rows, accuracy)
    assert result["retained_accuracy"]["std"] == pytest.approx(STD, rel=1e-5)
    assert result["sparsity"]["total"]["std"] == pytest.approx(STD)


def test_online_results_have_the_sample_std():
    seeds = [{"seed": i, "accuracy": v, "by_dataset": {"a": None}} for i, v in enumerate(VALUES)]
    whole = over_seeds(seeds)
    assert whole == {"accuracy": mean_and_std(VALUES), "by_dataset": {"a": None}}
    assert whole["accuracy"]["std"] == pytest.approx(STD)


def test_differences_have_the_sample_std():
    ours, theirs = ([{"x": v} for v in values] for values in (VALUES, [0.5, 0.5, 0.5]))
    error = 100 * STD / 3**0.5
    assert f"+15.00 points, standard error {error:.2f} over 3 seeds" in comparison(
        "a {} b", "x", ours, theirs
    )


def test_bands_have_the_sample_std():
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots()
    band(axis, [0, 1], [VALUES, VALUES], "three seeds")
    (polygon,) = axis.collections
    heights = polygon.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(0.65 + STD)
    assert heights.min() == pytest.approx(0.65 - STD)
    band(axis, [0, 1], [[0.3], [0.4]], "one seed")
    assert len(axis.collections) == 1
    plt.close(figure)
