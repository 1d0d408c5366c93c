"""Claims: intervals and verdicts by hand, the compared runs, and the document."""

import json
import shutil

import pytest

from experiments import fewshot, reproduce
from experiments.tables import claims, evidence, few_shot_claims, saved, stream_claims
from experiments.tables.flags import Flags
from experiments.tables.runner import Runner
from experiments.tables.verdicts import Interval, Wanted, difference, interval, verdict

# ---- intervals and verdicts


def test_an_interval_is_students():
    # Mean 60, std 10; the 97.5% quantile of t with 2 degrees of freedom is 4.302653.
    found = interval("x", [0.5, 0.6, 0.7])
    reach = 4.302653 * 10 / 3**0.5
    assert found == ("x", *map(pytest.approx, (60, 60 - reach, 60 + reach)), 3)
    assert str(found) == "x: 60.00 [35.16, 84.84] (n = 3)"


def test_one_seed_has_no_interval():
    found = interval("x", [0.5])
    assert str(found) == "x: 50.00 (n = 1)"
    for wanted in (Wanted(low=0.0), Wanted(high=0.0)):
        assert verdict([found], wanted) == "undecided"


def test_differences_are_taken_seed_by_seed():
    found = difference("x", [0.5, 0.7, 0.9], [0.4, 0.6])
    assert found == ("x", *map(pytest.approx, (10, 10, 10)), 2)


def test_a_small_negative_mean_is_zero():
    assert str(Interval("x", -0.01, -0.02, 0.3, 5)) == "x: -0.01 [-0.02, 0.30] (n = 5)"
    assert str(Interval("x", -0.001, -0.002, 0.3, 5)) == "x: 0.00 [0.00, 0.30] (n = 5)"


ABOVE, BELOW, BETWEEN = Wanted(low=0.0), Wanted(high=1.0), Wanted(2.0, 4.0)


@pytest.mark.parametrize(
    ("wanted", "ends", "said"),
    [
        (ABOVE, [(0.1, 5.0)], "holds"),
        (ABOVE, [(-0.1, 5.0)], "undecided"),
        (ABOVE, [(-5.0, -0.1)], "does not hold"),
        (ABOVE, [(0.1, 5.0), (1.0, 2.0)], "holds"),
        (ABOVE, [(0.1, 5.0), (-1.0, 2.0)], "undecided"),
        (ABOVE, [(0.1, 5.0), (-1.0, 2.0), (-2.0, -1.0)], "does not hold"),
        (BELOW, [(-9.0, 0.9)], "holds"),
        (BELOW, [(0.5, 1.5)], "undecided"),
        (BELOW, [(1.1, 1.5)], "does not hold"),
        (BETWEEN, [(2.1, 3.9)], "holds"),
        (BETWEEN, [(1.0, 5.0)], "undecided"),
        (BETWEEN, [(1.0, 1.9)], "does not hold"),
        (BETWEEN, [(4.1, 4.9)], "does not hold"),
        (ABOVE, [], "undecided"),
        # One of two is 1.26 times as wide with four degrees of freedom: t(0.9875) / t(0.975).
        (ABOVE, [(-2.1, -0.1)], "does not hold"),
        (ABOVE, [(-2.1, -0.1), (1.0, 2.0)], "undecided"),
        (ABOVE, [(-2.1, -0.3), (1.0, 2.0)], "does not hold"),
    ],
)
def test_a_verdict_needs_every_interval(wanted, ends, said):
    assert verdict([Interval("x", sum(end) / 2, *end, 5) for end in ends], wanted) == said


def test_wanted_ranges_are_written_out():
    assert [str(x) for x in (ABOVE, BELOW, BETWEEN)] == ["above 0", "below 1", "2 to 4"]


# ---- which runs are compared

LABELS = ("conv1", "conv2", "conv3", "conv4")
FROZEN = {
    **{f"{layer}/kernel": 0.8 - 0.1 * i for i, layer in enumerate(LABELS)},
    **{f"norm{i + 1}/scale": x for i, x in enumerate((0.5, 0.3, 0.6, 0.2))},
    **{f"dense{i}/kernel": 0.2 * i for i in (1, 2)},
    "head/kernel": 0.9, "head/bias": 0.97,
}  # fmt: skip
SPREAD = (-0.001, 0.0, 0.001)  # of three seeds


class MadeUp(Runner):
    """A runner that has every run, with results that depend on its configuration alone."""

    def __init__(self, table):
        super().__init__(saved.file_of(table), False, "")

    def result(self, family, name, config):
        if self.place.stem == "table-s8-full":
            assert (config.timesteps, config.seeds) == (10_000, 1)
        own = self.few_shot(config) if family is fewshot else self.stream(config)
        seeds = [
            {"seed": i, **{key: x + extra for key, x in own.items()}, "best_val_accuracy": 0.5,
             "sparsity": {**FROZEN, "total": self.frozen(config) + extra},
             "by_dataset": {"omniglot": 0.9, "mnist": 0.9 + extra,
                            "fashion_mnist": self.fashion(config) + extra}}
            for i, extra in enumerate(SPREAD)
        ]  # fmt: skip
        summary = {"mean": own.get("retained_accuracy"), "std": None}
        spread = {key: {"mean": x, "std": None} for key, x in seeds[1]["sparsity"].items()}
        return {"seeds": seeds, "retained_accuracy": summary, "sparsity": spread}

    def few_shot(self, config):
        accuracy = 0.5 + 0.05 * (config.shots == 5) + 0.001 * config.inner_steps
        accuracy += {"sparse-maml": 0.2, "sparse-relu-maml": 0.1}.get(config.method, 0.0)
        accuracy -= 0.07 * (config.batch_norm != "transductive") + 0.03 * (not config.bias)
        accuracy += 0.01 * config.initial_sparsity - 0.15 * (config.theta_from is not None)
        return {"accuracy": accuracy, "ensemble_accuracy": accuracy + 0.03}

    def stream(self, config):
        accuracy = {"sparse-lamaml": 0.75, "sparse-cmaml": 0.7, "lamaml": 0.7}.get(
            config.method, 0.65
        )
        accuracy -= config.inner_lr * (config.method == "lamaml")
        return {"retained_accuracy": accuracy, "accuracy": accuracy}

    def frozen(self, config):
        width = getattr(config, "width", 32)
        return (
            0.3
            - 0.001 * width
            + 0.1 * (config.method == "lamaml")
            - (0.01 * getattr(config, "shots", 5))
        )

    def fashion(self, config):
        return {"sparse-cmaml": 0.8}.get(config.method, 0.6)

    def evaluation(self, name, config, dataset, steps):
        return self.result(fewshot, name, config)

    def scan(self, name, config, grid):
        return config, []


class Lacking(MadeUp):
    """A runner that lacks La-MAML's runs with the largest step size."""

    def result(self, family, name, config):
        if family is not fewshot and (config.method, config.inner_lr) == ("lamaml", 0.2):
            return None
        return super().result(family, name, config)


@pytest.fixture(scope="module")
def found():
    """(claim, source, runs) -> the intervals as text, of results that are all there."""
    whole = evidence.Evidence()
    whole.table = lambda name: evidence.Table(Flags(), MadeUp(name))
    every = [
        *few_shot_claims.claims(),
        *stream_claims.continual_claims(),
        *stream_claims.online_claims(),
    ]
    texts = {}
    for claim in every:
        values = {x.label: round(x.mean, 3) for x in claim.intervals(whole)}
        assert texts.setdefault((claim.text, claim.source, claim.runs), values) is values
    return texts


def of(found, text, runs=None):
    (values,) = [
        values for (claim, _, ran), values in found.items() if claim == text and runs in (None, ran)
    ]
    return values


def test_few_shot_methods_are_compared(found):
    for runs in ("glyphs, Conv4-32", "miniImageNet, Conv4-32, 1,000 meta-steps"):
        text = "sparse-MAML is more accurate than FOMAML"
        assert of(found, text, runs) == {"1-shot": 20.0, "5-shot": 20.0}
        text = "sparse-ReLU-MAML is more accurate than BOIL"
        assert of(found, text, runs) == {"1-shot": 10.0, "5-shot": 10.0}
    text = "sparse-MAML is more accurate than FOMAML on other domains"
    targets = {"glyphs", "omniglot", "mnist", "fashion_mnist"}
    for runs, own in (("Omniglot, Conv4-32", "omniglot"), ("glyphs, Conv4-32", "glyphs")):
        labels = {f"{name}, {shots}-shot" for name in targets - {own} for shots in (1, 5)}
        assert set(of(found, text, f"{runs}, tested on others")) == labels


def test_figures_are_compared(found):
    assert of(found, "Sparsity emerges from every initial sparsity") == dict.fromkeys(
        ("0%", "10%", "50%", "90%"), 21.8
    )
    gains = of(found, "A higher initial sparsity gives a higher accuracy")
    assert gains == {"10% - 0%": 0.1, "50% - 10%": 0.4, "90% - 50%": 0.4}
    assert of(found, "The sparsity of the convolutions falls with depth") == {
        "conv1 - conv2": 10.0, "conv2 - conv3": 10.0, "conv3 - conv4": 10.0,
    }  # fmt: skip
    assert set(of(found, "The biases of the output layer freeze entirely").values()) == {97.0}
    assert of(
        found, "The gains of the last batch norm are less sparse than those of the first"
    ) == {"norm1 - norm4": 30.0}
    turns = of(found, "The sparsity of batch-norm gains is not monotone in depth")
    assert turns == {"norm3 - norm2": 30.0, "norm3 - norm4": 40.0}
    assert of(found, "Wider networks are less sparse") == {
        "8 - 16": 0.8, "16 - 32": 1.6, "32 - 64": 3.2, "64 - 128": 6.4,
    }  # fmt: skip
    steps = {"K = 10": 0.5, "K = 25": 2.0, "K = 50": 4.5}
    assert of(found, "More inner steps help sparse-MAML") == steps
    assert of(found, "More inner steps do not help MAML (here FOMAML)") == steps


def test_the_supplements_tables_are_compared(found):
    runs = "glyphs, small ResNet-12 with an eighth of the channels"
    values = of(found, "An ensemble of 3 epochs adds 2 to 4 points", runs)
    assert len(values) == 8 and set(values.values()) == {3.0}
    values = of(found, "More parameters freeze with 1 shot than with 5", runs)
    assert values == {"sparse-MAML": 4.0, "sparse-ReLU-MAML": 4.0}
    values = of(found, "sparse-MAML keeps its accuracy without biases")
    assert values == {"with - without": 3.0}
    values = of(found, "Accuracy falls without transductive batch norm")
    assert len(values) == 4 and set(values.values()) == {7.0}
    values = of(found, "Without transductive batch norm, sparse-MAML has no advantage")
    assert values == {"support": 20.0, "running": 20.0}
    values = of(found, "A mask that is learned after theta does not help")
    assert values["1-shot, 0%"] == 5.0 - 0.5 and values["5-shot, 50%"] == 5.0
    values = of(found, "theta and mask learned together are better than one after the other")
    assert values["1-shot, 0%"] == 15.5 and values["5-shot, 50%"] == 15.0


def test_a_range_over_fewer_step_sizes_is_not_compared():
    lacking = evidence.Evidence()
    lacking.table = lambda name: evidence.Table(Flags(), Lacking(name))
    (claim,) = [x for x in stream_claims.continual_claims() if "depends less" in x.text]
    assert not list(claim.intervals(lacking))


def test_streams_are_compared(found):
    streams = ("rotations", "permutations", "many-permutations")
    assert set(of(found, "sparse-La-MAML retains more than ER")) == set(streams)
    assert of(found, "sparse-La-MAML retains more than ER")["rotations"] == 10.0
    values = of(found, "sparse-La-MAML depends less on the step size alpha_0")
    assert values == dict.fromkeys(streams, 15.0)  # 0.2 - 0.05
    values = of(found, "The final sparsity of La-MAML is that of the paper")
    assert values["rotations"] == pytest.approx(100 * (0.3 - 0.1 + 0.1 - 0.05) - 20.47)
    values = of(found, "The weights of deeper layers of La-MAML are sparser")
    assert values["permutations, dense2 - dense1"] == 20.0
    assert values["permutations, head - dense2"] == 50.0
    assert of(found, "La-MAML freezes more than sparse-La-MAML") == dict.fromkeys(streams, 10.0)
    values = of(found, "Wider networks of La-MAML are less sparse")
    assert len(values) == 12 and values["rotations, 200 - 400"] == 20.0
    assert of(found, "sparse-La-MAML is more accurate than MER") == {"200": 10.0, "1000": 10.0}
    assert set(of(found, "The sparsity of sparse-La-MAML is in the output layer")) == {
        "200", "1000",
    }  # fmt: skip
    for runs in ("the first 1,000 timesteps", "whole streams"):
        values = of(found, "sparse-C-MAML is more accurate than C-MAML-fixed", runs)
        assert values == {"0.98": 5.0, "0.9": 5.0}
        values = of(found, "sparse-C-MAML gains most on Fashion-MNIST", runs)
        assert values == {
            f"{p}, {other}": 20.0 for p in (0.98, 0.9) for other in ("omniglot", "mnist")
        }


# ---- the document


def test_the_document_says_what_the_results_say(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reproduce, "CLAIMS", tmp_path / "claims.md")
    reproduce.main(["--claims"])
    assert capsys.readouterr().out == f"written: {tmp_path / 'claims.md'}\n"
    stored = reproduce.PAGES.parent / "claims.md"
    assert (tmp_path / "claims.md").read_text() == stored.read_text()


def test_without_results_every_claim_is_undecided(monkeypatch, tmp_path):
    monkeypatch.setattr(saved, "RESULTS", tmp_path)
    lines = claims.document()
    rows = [line for line in lines if line.endswith("** |")]
    assert len(rows) > 60 and all(line.endswith("| not run | **undecided** |") for line in rows)
    (total,) = [line for line in lines if line.startswith("Of ")]
    assert total == (
        f"Of {len(rows)} claims, 0 hold, 0 do not hold, and {len(rows)} are undecided."
        f" For {len(rows)} of the undecided, nothing was run."
    )


@pytest.mark.parametrize("flags", [["--seeds", "3"], ["--no-run"], ["--out", "x"], ["--save"]])
def test_claims_read_no_other_flag(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["--claims", *flags])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and f"{flags[0]} is not read with --claims" in said


def test_a_damaged_results_file_replaces_nothing(monkeypatch, tmp_path, capsys):
    place, document = tmp_path / "results", tmp_path / "claims.md"
    shutil.copytree(saved.RESULTS, place, ignore=shutil.ignore_patterns("*.png"))
    document.write_text("old")
    monkeypatch.setattr(saved, "RESULTS", place)
    monkeypatch.setattr(reproduce, "CLAIMS", document)
    path = place / "table-s5.json"
    whole = path.read_text()
    value = json.loads(whole)
    del value["runs"]["rotations-lamaml"]["result"]["seeds"][0]["sparsity"]
    for text in ("{", "[]", json.dumps(value)):
        path.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            reproduce.main(["--claims"])
        lines = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2 and len(lines) == 1, lines
        assert document.read_text() == "old"
