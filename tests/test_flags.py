"""Wrong command lines, also flags without effect: one line, status 2, nothing written."""

import dataclasses

import numpy as np
import pytest

from experiments import cli, continual, fewshot, online, plots, reproduce, unread
from jaxsparse.training import ConfigError, FewShotConfig, memory
from jaxsparse.training.continual import ContinualConfig, used_rates
from jaxsparse.training.online import OnlineConfig

MAINS = {
    "fewshot": fewshot.main,
    "continual": continual.main,
    "online": online.main,
    "reproduce": reproduce.main,
    "plots": plots.main,
}
FAMILIES = {"fewshot": fewshot, "continual": continual, "online": online}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command that must be refused, in an empty folder, and return its line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "device_memory", lambda: 8 * 2**30)

    def run(command, *args):
        with pytest.raises(SystemExit) as stop:
            MAINS[command](list(args))
        lines = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2, (args, lines)
        assert len(lines) == 1 and lines[0].startswith("error: "), (args, lines)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()], args
        return lines[0]

    return run


# ---- what nothing reads


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_used_settings_has_each_setting_once(family):
    reads, config_type = FAMILIES[family].READS, FAMILIES[family].Config
    names = [*reads.always, *reads.cases]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(config_type))
    for cases in reads.cases.values():
        assert all(hasattr(config_type, name) for case in cases for name in case)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fewshot --method sparse-maml-plus --mask-init 0.1", "--mask-init is read only with"),
        ("fewshot --method anil --embedding 8", "--embedding is read only with --method"),
        ("fewshot --initial-sparsity 0.3 --mask-init 0.1", "--initial-sparsity is read only with"),
        ("fewshot --method fomaml --mask-lr 0.1", "--mask-lr is read only with"),
        ("fewshot --method maml --mask-optimizer adam", "--mask-optimizer is read only with"),
        ("fewshot --method maml --no-second-order", "--no-second-order is read only with"),
        ("fewshot --method meta-sgd --mask-init 1 --inner-lr 1", "--inner-lr is read only with"),
        ("fewshot --image-size 28", "--image-size is read only with --dataset folder"),
        ("fewshot --data-dir /data", "--data-dir is read only with --dataset omniglot|"),
        ("fewshot --network resnet12 --width 8", "--width is read only with --network conv4"),
        ("fewshot --channels 4 4 4 4", "--channels is read only with --network resnet12|"),
        ("continual --method lamaml --slope 1", "--slope is read only with --method sparse-lamaml"),
        ("continual --method er --margin 1", "--margin is read only with --method gem"),
        ("continual --method gem --within-rate 1", "--within-rate is read only with --method mer"),
        ("continual --method sgd --memories 9", "--memories is read only with"),
        ("continual --method cmaml-sync --mask-lr 1", "--mask-lr is read only with"),
        ("continual --method lamaml --theta_lr 1", "--theta-lr is read only with"),
        ("continual --stream split-cifar10 --data-seed 1", "--data-seed is read only with"),
        ("online --method bgd --inner-steps 3", "--inner-steps is read only with"),
        ("online --method sparse-relu-cmaml --inner-lr 1", "--inner-lr is read only with"),
        ("online --method cmaml --pretrain-steps 3", "--pretrain-steps is read only with"),
        ("online --method maml --capacity 3", "--capacity is read only with"),
        ("online --method maml --no-mask-theta", "--no-mask-theta is read only with"),
        ("reproduce --table S5 --methods lamaml", "--methods is not read with --table S5"),
        ("reproduce --table S7 --memories 500", "--memories must be one of 200, 1000"),
        ("reproduce --table 3 --p 0.5", "--p is not read with --table 3"),
        ("reproduce --table 3 --methods bgd", "--methods must be one of sparse-lamaml"),
        ("reproduce --table 3 --streams", "--streams must have at least one value, got none"),
        ("reproduce --table S8 --p 0.9 0.9", "--p must have different values, got 0.9 0.9"),
        ("reproduce --figure S4 --timesteps 3", "--timesteps is not read with --figure S4"),
    ],
)
def test_a_flag_without_effect_is_refused(line, message, refused):
    assert message in refused(*line.split())


def test_presets_and_stored_runs_may_have_unused_settings():
    config = dataclasses.replace(FewShotConfig(method="anil"), mask_lr=0.3, embedding=8)
    assert unread.unread(unread.FEWSHOT, config, ["method", "width", "no_bias"]) is None
    assert unread.unread(unread.FEWSHOT, config, ["embedding"]) is not None


# ---- scans


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("sparse-lamaml", {"inner_lr", "mask_lr", "glances"}),
        ("cmaml-sync", {"inner_lr", "theta_lr", "glances"}),
        ("sync-lamaml", {"inner_lr", "mask_lr", "theta_lr", "glances"}),
        ("er", {"theta_lr"}),
    ],
)
def test_a_scan_varies_what_the_method_uses(method, names):
    config = ContinualConfig(method=method, theta_lr=0.1)
    grid = continual.scan.Grid().or_usual(config)
    assert {name for name in grid._fields if getattr(grid, name)} == names
    assert names - {"glances"} == set(used_rates(config))
    if "theta_lr" in names:
        assert grid.theta_lr == pytest.approx((0.03, 0.1, 0.3))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--grid-inner-lr 0.1", "--grid-inner-lr is read only with --scan"),
        ("--grid_glances 5", "--grid-glances is read only with --scan"),
        ("--scan --grid-inner-lr 0.1 -1", "--grid-inner-lr: inner_lr must be 0 or more, got -1.0"),
        ("--scan --grid-mask-lr nan", "--grid-mask-lr: mask_lr must be finite, got nan"),
        ("--scan --grid-mask-lr inf", "--grid-mask-lr: mask_lr must be finite, got inf"),
        ("--scan --grid-glances 5 0", "--grid-glances: glances must be 1 or more, got 0"),
        ("--scan --grid-inner-lr", "--grid-inner-lr must have at least one value, got none"),
        ("--scan --grid-inner-lr 0.1 0.10", "--grid-inner-lr must have different values"),
        ("--scan --grid-theta-lr 0.1", "--grid-theta-lr is not read with --method sparse-lamaml"),
        ("--scan --method cmaml-sync --grid-mask-lr 1", "--grid-mask-lr is not read with --method"),
    ],
)
def test_a_grid_that_cannot_be_scanned_is_refused_before_it(line, message, refused):
    flags = ("--data=glyphs", "--tasks=2", "--samples-per-task=40", "--out=run")
    assert message in refused("continual", *flags, *line.split())


# ---- what would never begin


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("continual --data=glyphs --tasks=1000000", "accuracies of tasks 1000000"),
        ("continual --data=glyphs --seeds=100000", "runs 100000 of width 100"),
        ("continual --data=glyphs --width=1000000000", "of width 1000000000"),
        ("continual --data=glyphs --network=cnn3 --width=1000000", "of width 1000000"),
        ("continual --data=glyphs --memories=2000000000", "memories 2000000000"),
        ("continual --data=glyphs --replay-batch-size=1000000000", "replay_batch_size 1000000000"),
        ("continual --data=glyphs --epochs=2000000000", "must be below 2^31"),
        ("fewshot --seeds=1000000", "seeds 1000000 of width 32"),
        ("fewshot --width=1000000000", "of width 1000000000"),
        ("fewshot --width=2147483647", "of width 2147483647"),
        ("fewshot --meta-batch-size=2000000000", "meta_batch_size 2000000000"),
        ("fewshot --method=sparse-maml-plus --embedding=1000000000", "must fit into memory"),
        ("fewshot --epochs=100000 --steps-per-epoch=100000", "must be below 2^31"),
        ("online --data=glyphs --timesteps=2147483647", "timesteps 2147483647"),
        ("online --data=glyphs --seeds=1000000 --width=16", "seeds 1000000"),
        ("online --data=glyphs --capacity=1000000000", "capacity 1000000000"),
    ],
)
def test_what_cannot_fit_into_memory_is_refused(line, message, refused):
    command, *flags = line.split()
    assert message in refused(command, *flags, "--out=run")


def test_only_what_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 100)
    memory.check_fits(100, lambda: pytest.fail("the bound fits"), "it")
    memory.check_fits(101, lambda: 100, "it")
    with pytest.raises(ConfigError, match="it must fit into memory: they need 0 GiB"):
        memory.check_fits(101, lambda: 101, "it")
    monkeypatch.setattr(memory, "device_memory", lambda: None)
    memory.check_fits(2**50, lambda: 2**50, "it")
    with pytest.raises(ConfigError):
        memory.check_fits(10**400, lambda: 10**400, "it")


@pytest.mark.parametrize("config", [ContinualConfig(), ContinualConfig(network="cnn4", width=160)])
def test_the_bound_of_a_run_is_no_less_than_what_it_keeps(config, monkeypatch):
    checked = []
    monkeypatch.setattr(memory, "check_fits", lambda *args: checked.append(args))
    continual.load_stream(dataclasses.replace(config, data="glyphs", method="sync-lamaml"))
    fewshot.load_data(FewShotConfig(width=8, method="sparse-maml-plus", embedding=40))
    online.load_data(OnlineConfig(data="glyphs", method="cmaml"))
    online.load_data(OnlineConfig(data="glyphs", method="maml"))
    assert len(checked) == 5
    for bound, size, what in checked:
        assert 0 < size() <= bound, what


# ---- wrong words, generated

_WORDS = (
    *("٣", "True", "0x10", "1_0", " 5", "5 ", "five", "", "--", "-", "3.5.", "9" * 400),
    *("\udcff", "None;", "½", "1,5", "+-1", "\u2028", "x\ny"),
)
_NOT_WHOLE = ("1e3", "3.0", "1.5", "nan", "inf")
_NOT_POSITIVE = ("0", "-1", "-2147483648", "2147483648", "1" + 400 * "0")
_NOT_RATES = ("-0.5", "nan", "-inf", "inf", "1e400")
_CHOICES = ("stream", "method", "data", "dataset", "network", "table", "figure", "streams", "init")


def wrong_line(rng: np.random.Generator) -> list[str]:
    """A command and flags, one of which is wrong in one of many ways."""
    command = rng.choice(list(MAINS))
    if command == "plots":
        return [command, rng.choice(["--all", "-x", "", "nowhere", "--", "run[1]", "\udcff"])]
    config_type = reproduce.Flags if command == "reproduce" else FAMILIES[command].Config
    fields = {field.name: field.type for field in dataclasses.fields(config_type)}
    start = ["--table=S8"] if command == "reproduce" else ["--out=run"]
    whole = [name for name, kind in fields.items() if kind is int and "seed" not in name]
    rates = [name for name in fields if name.endswith("_lr") or name == "p"]
    numbers = [name for name, kind in fields.items() if kind in (int, float)]
    choices = [name for name in fields if name in _CHOICES]

    def flag(name, value):
        word = f"--{name.replace('_', '-')}"
        return [f"{word}={value}"] if rng.random() < 0.5 else [word, value]

    def letters():
        return "".join(rng.choice(list("abcdefgxyz-_=."), rng.integers(1, 9)))

    kinds = {
        "word": lambda: flag(rng.choice(numbers), rng.choice(_WORDS)),
        "not whole": lambda: flag(rng.choice(whole), rng.choice(_NOT_WHOLE)),
        "not positive": lambda: flag(rng.choice(whole), rng.choice(_NOT_POSITIVE)),
        "not a rate": lambda: flag(rng.choice(rates or ["p"]), rng.choice(_NOT_RATES)),
        "not a choice": lambda: flag(rng.choice(choices), f"{letters()}?"),
        "unknown": lambda: [f"--{letters()}?"],
        "abbreviated": lambda: [f"--{rng.choice(list(fields))[:-1]}?"],
        "no value": lambda: [f"--{rng.choice(numbers).replace('_', '-')}"],
        "stray": lambda: [rng.choice(["word", "@file", "-5", "-q", "5", "--no-width"])],
        "empty": lambda: flag(rng.choice(["out", "data_dir", *numbers]), ""),
        "resume": lambda: flag("resume", rng.choice(["", "nowhere", "/dev/null", "\udcff"])),
        "twice wrong": lambda: ["--seeds=two", f"--{letters()}?"],
    }
    return [command, *start, *kinds[rng.choice(list(kinds))]()]


def refuse_generated(refused, seed, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        refused(*map(str, wrong_line(rng)))


def test_generated_wrong_flags_are_one_line_each(refused):
    refuse_generated(refused, seed=0, count=50)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_generated_wrong_flags_are_one_line_each(seed, refused):
    refuse_generated(refused, seed, count=50)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--resume="], "--resume needs a value, got ''"),
        (["--resume", ""], "--resume needs a value, got ''"),
        (["--out", ""], "--out needs a value, got ''"),
        (["--shots=--"], "--shots: must be a whole number below 2^31, got '--'"),
        (["--seeds=2147483648"], "--seeds: must be a whole number below 2^31, got '2147483648'"),
        (["--mask-init=1_0"], "mask_init must be kaiming, a number or low:high, got '1_0'"),
        (["--mask-init", " 1"], "mask_init must be kaiming, a number or low:high, got ' 1'"),
        (["--clip=none"], "--clip: must be {None}|FLOAT, got 'none'"),
        (["--seed=2147483647", "--seeds=2"], "seed must lie in [0, 2^31 - 2], got 2147483647"),
        (["--width", "\udcff"], r"arguments must be UTF-8, got '\udcff'"),
    ],
)
def test_what_is_wrong_is_named(line, message, refused):
    assert message in refused("fewshot", *line)


def test_the_flags_of_a_new_run_are_refused_beside_resume(refused, tmp_path):
    (tmp_path / "run").mkdir()
    record = '{"config": {"method": "sgd", "data": "glyphs", "theta_lr": 0.5}}'
    config = tmp_path / "run" / "config.json"
    for flags in (["--out=other"], ["--scan"], ["--grid-theta-lr=1"], ["--theta-lr=0.1"]):
        config.write_text(record)
        with pytest.raises(SystemExit) as stop:
            continual.main(["--resume=run", *flags])
        assert stop.value.code == 2
        assert config.read_text() == record


def test_a_data_dir_that_a_resumed_run_does_not_use_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"config": {"dataset": "glyphs"}}')
    with pytest.raises(SystemExit) as stop:
        fewshot.main([f"--resume={tmp_path}", "--data-dir=/nowhere"])
    assert stop.value.code == 2
    assert "--data-dir is read only with --dataset" in capsys.readouterr().err


def test_repeated_flags_and_both_kinds_of_dash():
    words = ["--shots=1", "--shots", "3", "--data_dir=a"]
    assert cli.last_value(words, "shots") == "3" and cli.last_value(words, "data_dir") == "a"
    assert cli.last_value(["--resume"], "resume") is None
    assert cli.given(words) == ["shots", "shots", "data_dir"]
