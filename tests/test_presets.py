"""Presets: the settings of each method, and their sources."""

import pytest

from experiments import continual, online, unread
from experiments.fewshot import presets


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("method", ["fomaml", "maml"])
def test_maml_has_its_own_settings_on_table_s2(method, shots):
    config = presets.preset_config("table-s2", None, method, shots)
    assert (config.inner_lr, config.inner_steps, config.test_inner_steps) == (0.01, 5, 10)
    assert (config.width, config.theta_lr, config.query_shots) == (32, 0.001, 15)
    assert config.meta_batch_size == (4 if shots == 1 else 2)
    assert config.epochs * config.steps_per_epoch == 60_000
    assert config.dataset == "mini_imagenet" and config.schedule == "constant"


def test_anil_boil_and_meta_sgd_have_their_own_settings_on_table_s2():
    anil, boil, sgd = (
        presets.preset_config("table-s2", None, m, 5) for m in ("anil", "boil", "meta-sgd")
    )
    assert anil.second_order and boil.second_order and sgd.second_order
    assert (anil.inner_lr, anil.inner_steps, anil.width) == (0.01, 5, 32)
    assert (boil.inner_lr, boil.inner_steps, boil.test_inner_steps) == (0.5, 1, 1)
    assert (boil.width, boil.meta_batch_size) == (64, 4)
    assert boil.epochs * boil.steps_per_epoch == 30_000
    assert (sgd.mask_init, sgd.inner_steps, sgd.mask_lr) == ("0.005:0.1", 1, sgd.theta_lr)


@pytest.mark.parametrize("method", ["sparse-maml", "sparse-relu-maml", "sparse-maml-plus"])
def test_the_sparse_methods_have_the_settings_of_table_s2(method):
    config = presets.preset_config("table-s2", None, method, 1)
    assert (config.inner_steps, config.test_inner_steps, config.width) == (35, 100, 64)


def test_help_says_where_settings_are_from():
    text = presets.describe()
    for name in presets.PRESETS:
        assert f"  {name}: " in text
    assert "with --method fomaml (MAML's paper): --width=32 --inner-lr=0.01" in text
    assert "with --method boil (BOIL's public code)" in text
    assert "Table S6: sparse-lamaml, lamaml" in continual.describe()
    assert "OSAKA's public code" in online.describe()


def test_help_prints_no_flag_that_is_refused():
    stream = None
    for line in continual.describe().splitlines()[1:]:
        name, flags = line.strip().split(":", 1)
        if not line.startswith("    "):
            stream = name
            continue
        given = [flag.removeprefix("--").split("=")[0].replace("-", "_") for flag in flags.split()]
        config = continual.preset_config(stream, name.split(",")[0])
        assert unread.unread(unread.CONTINUAL, config, given) is None
    assert stream == "split-cifar10"  # the last one
