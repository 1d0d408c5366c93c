"""Tables beside the paper's figures, from results made up for the purpose."""

import dataclasses
import json

import pytest

from experiments import reproduce, tables
from experiments.published import TABLE_S5
from experiments.reproduce import Flags, cell_config


def value(mean, std=0.01):
    return {"mean": mean, "std": std}


def store(out, stream, method, retained, sparsity=0.08):
    """The folder of a finished run of two seeds."""
    config = cell_config(Flags(seeds=2), stream, method)
    folder = out / f"{stream}-{method}"
    folder.mkdir(parents=True)
    names = ("total", "dense1/kernel", "dense2/kernel", "head/kernel")
    names += ("dense1/bias", "dense2/bias", "head/bias")
    result = {
        "retained_accuracy": value(sum(retained) / 2),
        "backward_transfer_interference": value(-0.1),
        "learning_accuracy": value(0.85),
        "forward_transfer": value(0.6),
        "sparsity": {name: value(sparsity, 0.002) for name in names},
        "seeds": [{"retained_accuracy": x} for x in retained],
    }
    (folder / "config.json").write_text(json.dumps({"config": dataclasses.asdict(config)}))
    (folder / "result.json").write_text(json.dumps(result))


def run(out, *flags):
    reproduce.main(["--no-run", "--seeds", "2", "--out", str(out), *flags])


def test_sparsity_stands_beside_the_papers(tmp_path, capsys):
    store(tmp_path, "rotations", "sparse-lamaml", (0.76, 0.77), sparsity=0.0733)
    store(tmp_path, "rotations", "lamaml", (0.76, 0.75), sparsity=0.30)
    run(tmp_path, "--table", "S5", "--streams", "rotations")
    lamaml, sparse = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "7.33 +- 0.20 / 7.13" in sparse and sparse.endswith("| yes, 0.2 apart |")
    assert "30.00 +- 0.20 / 20.47" in lamaml and lamaml.endswith("| no, 9.5 apart |")


def test_a_spread_wider_than_three_points_is_allowed_for():
    paper = TABLE_S5["rotations", "lamaml"]
    assert tables._verdict({"total": value(0.26, 0.01)}, paper) == "no, 5.5 apart"
    assert tables._verdict({"total": value(0.26, 0.06)}, paper) == "yes, 5.5 apart"


def test_methods_are_compared_seed_by_seed(tmp_path, capsys):
    store(tmp_path, "rotations", "sparse-lamaml", (0.76, 0.78))
    store(tmp_path, "rotations", "er", (0.70, 0.71))
    store(tmp_path, "rotations", "lamaml", (0.755, 0.785))
    run(tmp_path, "--table", "3", "--streams", "rotations")
    out = capsys.readouterr().out
    # 6 and 7 points: mean 6.5, standard error 0.5; and 0.5 and -0.5.
    assert "above er's: +6.50 points, standard error 0.50 over 2 seeds" in out
    assert "not told apart from lamaml's: +0.00 points, standard error 0.50" in out
    assert "| er | 70.50 +- 1.00 | -10.00 +- 1.00 | 85.00" in out


def test_a_section_is_replaced_and_the_rest_stays(tmp_path):
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- table 3 -->\nold\n<!-- end of table 3 -->\nafter\n")
    for lines in (["one", "two"], ["three"]):
        reproduce.write_section(document, "table 3", lines)
    assert document.read_text() == (
        "before\n<!-- table 3 -->\nthree\n<!-- end of table 3 -->\nafter\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name one --table or one --figure"),
        (["--table", "S5", "--figure", "S3"], "name one --table or one --figure"),
        (["--table", "S9"], "S9"),
        (["--table", "S5", "--seeds", "0"], "--seeds must be 1 or more, got 0"),
        (["--table", "3", "--streams", "rotations"], "holds a run of another configuration"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(flags, message, tmp_path, capsys):
    store(tmp_path, "rotations", "er", (0.7, 0.7))
    path = tmp_path / "rotations-er" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["glances"] = 99
    path.write_text(json.dumps(record))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *flags)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(lines) == 1 and message in lines[0]
