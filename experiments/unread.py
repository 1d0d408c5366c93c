"""Which settings are read by which configuration; a flag that is not read is refused.

Only flags on the command line are checked. Presets and stored configurations may hold values that
their method does not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Setting -> the values it may have; a case holds if all its settings have one of their values.
Case = Mapping[str, tuple[Any, ...]]


class Reads(NamedTuple):
    """Which settings of a family are read.

    Attributes:
      always: settings that are always read.
      cases: for each other setting, the cases in which it is read.
    """

    always: tuple[str, ...]
    cases: Mapping[str, tuple[Case, ...]]


def unread(reads: Reads, config: Any, given: Sequence[str]) -> str | None:
    """A line that names the first of the `given` flags that is not read, or None.

    Examples:
      >>> unread(FEWSHOT, FewShotConfig(method="anil"), ["embedding"])
      '--embedding is read only with --method sparse-maml-plus'
    """
    for name in given:
        field = name if name in reads.cases else name.removeprefix("no_")
        if not is_read(reads, config, field):
            cases = " or ".join(map(_words, reads.cases[field]))
            return f"--{name.replace('_', '-')} is read only with {cases}"
    return None


def is_read(reads: Reads, config: Any, field: str) -> bool:
    """Whether the configuration reads a setting."""
    return field not in reads.cases or any(
        all(getattr(config, name) in values for name, values in case.items())
        for case in reads.cases[field]
    )


def _words(case: Case) -> str:
    return " and ".join(
        _flag(name, values[0])
        if len(values) == 1
        else f"--{name.replace('_', '-')} {'|'.join(map(str, values))}"
        for name, values in case.items()
    )


def _flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


# ---- few-shot learning

_LEARNED = {"method": ("sparse-maml", "sparse-relu-maml", "sparse-maml-plus", "meta-sgd")}
# Gates whose parameters start as --mask-init says; with "auto" they start at inner_lr.
_RATES = ("sparse-relu-maml", "meta-sgd")

_READ_FROM_TFDS = (
    *("omniglot", "omniglot-1200", "mini_imagenet", "tiered_imagenet"),
    *("cub", "cars", "cifar_fs", "fc100"),
)

FEWSHOT = Reads(
    always=(
        *("method", "dataset", "ways", "shots", "query_shots", "network", "bias", "batch_norm"),
        *("adapt_norm", "inner_steps", "theta_from", "ensemble"),
        *("test_inner_steps", "theta_lr", "clip", "meta_batch_size", "epochs", "steps_per_epoch"),
        *("schedule", "val_tasks", "test_tasks", "precision", "blocks", "task_loop", "seed"),
        "seeds",
    ),
    cases={
        "data_dir": ({"dataset": (*_READ_FROM_TFDS, "folder")},),
        "image_size": ({"dataset": ("folder",)},),
        "width": ({"network": ("conv4",)},),
        "channels": ({"network": ("resnet12", "resnet12-large")},),
        "inner_lr": (
            {"method": ("sparse-maml", "sparse-maml-plus", "fomaml", "maml", "anil", "boil")},
            {"method": _RATES, "mask_init": ("auto",)},
        ),
        "mask_lr": (_LEARNED,),
        "mask_optimizer": (_LEARNED,),
        "mask_init": ({"method": ("sparse-maml", *_RATES)},),
        "initial_sparsity": (
            {"method": ("sparse-maml",), "mask_init": ("auto", "kaiming")},
            {"method": ("sparse-maml-plus",)},
        ),
        "embedding": ({"method": ("sparse-maml-plus",)},),
        # MAML is always second order: with it, only --no-second-order has no effect.
        "second_order": (
            {"method": (*_LEARNED["method"], "fomaml", "anil", "boil")},
            {"second_order": (True,)},
        ),
    },
)


# ---- streams of tasks

_META = ("sparse-lamaml", "lamaml", "sync-lamaml", "cmaml-sync")
_LEARNED_RATES = ("lamaml", "sync-lamaml")
_OTHERS = ("er", "mer", "gem", "agem", "sgd", "iid")

CONTINUAL = Reads(
    always=(
        *("stream", "method", "data", "tasks", "samples_per_task", "epochs", "batch_size"),
        *("glances", "network", "width", "init", "augment", "clip_norm", "measure", "validation"),
        *("seed", "seeds"),
    ),
    cases={
        "data_dir": ({"data": ("mnist", "fashion_mnist", "cifar10")},),
        "data_seed": ({"stream": ("rotations", "permutations", "many-permutations")},),
        "memories": (
            {"method": (*_META, "er", "mer")},
            {"method": ("gem", "agem"), "memory_per_task": (None,)},
        ),
        "memory_per_task": ({"method": ("gem", "agem")},),
        "replay_batch_size": ({"method": (*_META, "er", "mer", "agem")},),
        "inner_lr": (
            {"method": ("sparse-lamaml", "cmaml-sync")},
            {"method": _LEARNED_RATES, "mask_init": ("auto",)},
        ),
        "mask_lr": ({"method": ("sparse-lamaml", *_LEARNED_RATES)},),
        "theta_lr": ({"method": ("sync-lamaml", "cmaml-sync", *_OTHERS)},),
        "mask_init": ({"method": ("sparse-lamaml", *_LEARNED_RATES)},),
        "slope": ({"method": ("sparse-lamaml",)},),
        "gradient_sum": ({"method": ("sparse-lamaml", *_LEARNED_RATES)},),
        "meta_iterates": ({"method": _META},),
        "inner_batch_size": ({"method": _META},),
        "inner_rates": ({"method": _LEARNED_RATES},),
        "inner_clip": ({"method": _META},),
        "second_order": ({"method": _META},),
        "replay_passes": ({"method": ("mer",)},),
        "within_rate": ({"method": ("mer",)},),
        "across_rate": ({"method": ("mer",)},),
        "margin": ({"method": ("gem",)},),
    },
)


# ---- switching streams

_CMAML = ("sparse-cmaml", "sparse-relu-cmaml", "cmaml", "cmaml-fixed")
_PRETRAINED = {"method": ("fine-tuning", "maml", "anil")}
_BAYES = {"method": ("bgd", "metacog", "metabgd")}
_ADAPTS = ("fine-tuning", "maml", "anil", "metabgd")

ONLINE = Reads(
    always=(
        *("p", "method", "data", "timesteps", "ways", "shots", "width", "theta_lr", "blocks"),
        *("log_every", "seed", "seeds"),
    ),
    cases={
        "data_dir": ({"data": ("real",)},),
        "inner_steps": ({"method": (*_CMAML, *_ADAPTS)},),
        "inner_lr": ({"method": ("sparse-cmaml", "cmaml", "cmaml-fixed", *_ADAPTS)},),
        "mask_lr": ({"method": ("sparse-cmaml", "sparse-relu-cmaml", "cmaml")},),
        "mask_init": ({"method": ("sparse-cmaml", "sparse-relu-cmaml")},),
        "detection_threshold": ({"method": _CMAML},),
        "modulation": ({"method": _CMAML},),
        "pairs": ({"method": _CMAML},),
        "outer_optimizer": ({"method": _CMAML},),
        "capacity": ({"method": _CMAML},),
        "mask_theta": ({"method": _CMAML},),
        "restart_now": ({"method": _CMAML},),
        "initial_std": (_BAYES,),
        "samples": (_BAYES,),
        "pretrain_batch_size": (_PRETRAINED,),
        "pretrain_second_order": (_PRETRAINED,),
        "pretrain_steps": (_PRETRAINED,),
        "pretrain_epochs": (_PRETRAINED,),
        "pretrain_patience": (_PRETRAINED,),
        "pretrain_seed": (_PRETRAINED,),
    },
)
