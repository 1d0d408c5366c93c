"""The settings of the few-shot tables and figures: the paper's, and a small one for CPUs.

`--scale paper`: miniImageNet with the presets `table-1`, `table-s1`, ..., `figure-2`, 5 seeds
(ResNet-12: 3). A run of Conv4-64 or ResNet-12 is 40,000 meta-steps of 35 inner steps (in the
figures of 25 or of K). All of this needs GPUs.

`--scale cpu`: the same comparisons on glyphs with Conv4-32, 5 inner steps and 800 meta-steps (the
preset `glyphs`), 5 seeds; 3 for what only Figures 2 and S2 need. Differences from the presets:

- FOMAML and MAML have the inner rate 0.1: the 0.4 of the preset is too high for them. In Table 1,
  the rates of FOMAML, ANIL and BOIL are chosen from six on validation tasks of seed 0; on
  miniImageNet and Omniglot that of FOMAML, from three and four. sparse-MAML keeps the preset's.
- sparse-MAML+ has an embedding of 160: the paper's 1,600 takes ten times the memory and time.
- ResNet-12 has an eighth of the channels and 3 seeds. It keeps what is special in Table S1: batch
  norm is not adapted, clipping at 10, gamma_m 0.01, ensembles of 3. Its inner rate is 0.1: with 5
  steps, the paper's 0.05 hardly moves the network.
- Table 1 also has miniImageNet (preset `mini-imagenet-cpu`, 2 seeds, first-order methods).
- For the tests on other domains, three methods are also trained on Omniglot, with 3 seeds and the
  settings of glyphs: then only the images differ.

Cost of `--scale cpu`, rounded, in runs of one seed. On one core, with the other one busy, a run on
glyphs or Omniglot takes 1 to 4 minutes, with second-order MAML 8, with the small ResNet-12 11, and
a run on miniImageNet 14.

| table or figure | runs of one seed |
|---|---|
| table 1 | glyphs 116, miniImageNet 26, Omniglot 26 |
| table S1 | ResNet-12 48 |
| table S2 | glyphs 30, all of them also in table 1 |
| table S3 | glyphs 40, 5 or 10 of them also in table 1 |
| table S4 | glyphs 30, up to 10 of them also in table 1 |
| figures 1 and S1 | glyphs 20, the same for both, 5 of them also in table 1 |
| figure 2 | glyphs 32; time grows with the 1 to 50 steps, on average 3.6 times a usual run |
| figure S2 | those of figure 2, and glyphs 17 with 8 to 128 filters, 5 of them also in table 1 |

With one --out folder, a run that several tables need is made once.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments import fewshot
from experiments.tables.flags import Flags
from jaxsparse.training import FewShotConfig
from jaxsparse.training.fewshot.config import CHANNELS

METHODS = {
    "fomaml": "FOMAML",
    "maml": "MAML, second order",
    "anil": "ANIL",
    "boil": "BOIL",
    "meta-sgd": "Meta-SGD",
    "sparse-maml": "sparse-MAML",
    "sparse-relu-maml": "sparse-ReLU-MAML",
    "sparse-maml-plus": "sparse-MAML+",
}
RATES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
INITIAL_SPARSITIES = (0.0, 0.1, 0.5, 0.9)
STEPS = (1, 5, 10, 25, 50)
WIDTHS = (8, 16, 32, 64, 128)
RESNET_METHODS = ("fomaml", "anil", "sparse-maml", "sparse-relu-maml")
S2_METHODS = ("sparse-maml", "sparse-relu-maml", "sparse-maml-plus")
_FIRST_ORDER = ("fomaml", "anil", "boil", "sparse-maml", "sparse-relu-maml")
_ACROSS = ("fomaml", "sparse-maml", "sparse-relu-maml")


class Setting(NamedTuple):
    """The data and settings of runs.

    Attributes:
      label: what a table calls it.
      start: how the names of its run folders start.
      preset: the preset of `experiments.fewshot`.
      dataset: the dataset that is trained on.
      seeds: number of seeds.
      methods: the methods that are run.
      changed: what differs from the preset.
      by_method: what differs for a method.
      rates: the inner rates of a method that Table 1 chooses from.
    """

    label: str
    start: str
    preset: str
    dataset: str
    seeds: int
    methods: tuple[str, ...] = tuple(METHODS)
    changed: Mapping[str, Any] = {}
    by_method: Mapping[str, Mapping[str, Any]] = {}
    rates: Mapping[str, tuple[float, ...]] = {}

    def config(self, flags: Flags, shots: int, method: str, **varied: Any) -> FewShotConfig:
        """The configuration of a run; `varied` is what the table varies."""
        config: Any = fewshot.preset_config(self.preset, self.dataset, method, shots)
        own = {**self.changed, **self.by_method.get(method, {}), "seeds": self.seeds, **varied}
        return dataclasses.replace(config, method=method, data_dir=flags.data_dir, **own)

    def run(
        self, flags: Flags, shots: int, method: str, **varied: Any
    ) -> tuple[str, FewShotConfig]:
        """The name of a run's folder, with what the table varies, and its configuration."""
        usual = self.config(flags, shots, method)
        marks = [
            f"{_MARKS.get(name, name)}-{_word(value)}"
            for name, value in varied.items()
            if value != getattr(usual, name) and name not in _NO_MARK
        ]
        name = "-".join([self.start, f"{shots}shot", method, *marks])
        return name, self.config(flags, shots, method, **varied)


_MARKS = {
    "inner_lr": "alpha",
    "initial_sparsity": "sparsity",
    "inner_steps": "K",
    "batch_norm": "norm",
}
# As many as `inner_steps`; the run that gives theta; theta's rate, which is 0 with that run.
_NO_MARK = ("test_inner_steps", "theta_from", "theta_lr")


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _paper(preset: str, start: str = "paper", **own: Any) -> Setting:
    """A setting of the paper on miniImageNet."""
    values: dict[str, Any] = {"label": "miniImageNet, Conv4-64", "seeds": 5, **own}
    rates = {"fomaml": RATES}
    return Setting(start=start, preset=preset, dataset="mini_imagenet", rates=rates, **values)


_RATE = {"inner_lr": 0.1}
_GLYPHS = Setting(
    "glyphs, Conv4-32", "cpu-glyphs", "glyphs", "glyphs", 5,
    by_method={"fomaml": _RATE, "maml": _RATE, "sparse-maml-plus": {"embedding": 160}},
    rates=dict.fromkeys(("fomaml", "anil", "boil"), RATES),
)  # fmt: skip
_MINI = Setting(
    "miniImageNet, Conv4-32, 1,000 meta-steps", "cpu-mini-imagenet", "mini-imagenet-cpu",
    "mini_imagenet", 2, _FIRST_ORDER, rates={"fomaml": RATES[1:4]},
)  # fmt: skip
_OMNIGLOT = _GLYPHS._replace(
    label="Omniglot, Conv4-32",
    start="cpu-omniglot",
    dataset="omniglot",
    seeds=3,
    methods=_ACROSS,
    rates={"fomaml": RATES[1:5]},
)


def _resnets(scale: str) -> tuple[Setting, ...]:
    """The small and the large ResNet-12."""
    found = []
    for network, name in (("resnet12", "small"), ("resnet12-large", "large")):
        if scale == "paper":
            found.append(_paper(
                "table-s1", f"paper-{network}", label=f"miniImageNet, {name} ResNet-12",
                seeds=3, methods=RESNET_METHODS, changed={"network": network},
            ))  # fmt: skip
            continue
        changed = {
            "network": network, "channels": tuple(n // 8 for n in CHANNELS[network]),
            "adapt_norm": False, "clip": 10.0, "mask_lr": 0.01, "ensemble": 3, **_RATE,
        }  # fmt: skip
        label = f"glyphs, {name} ResNet-12 with an eighth of the channels"
        found.append(_GLYPHS._replace(
            label=label, start=f"cpu-{network}", seeds=3, methods=RESNET_METHODS, changed=changed,
            by_method={}, rates={},
        ))  # fmt: skip
    return tuple(found)


# (what is shown, scale) -> the settings that are trained.
SETTINGS: dict[tuple[str, str], tuple[Setting, ...]] = {
    ("table 1", "paper"): (_paper("table-1"),),
    ("table 1", "cpu"): (_GLYPHS, _MINI),
    ("other domains", "paper"): (_paper("table-1"),),
    ("other domains", "cpu"): (_OMNIGLOT, _GLYPHS._replace(methods=_ACROSS)),
    ("table S1", "paper"): _resnets("paper"),
    ("table S1", "cpu"): _resnets("cpu"),
    ("table S2", "paper"): (_paper("table-s2", methods=S2_METHODS),),
    ("table S2", "cpu"): (_GLYPHS._replace(methods=S2_METHODS),),
    ("table S3", "paper"): (_paper("table-s3"),),
    ("table S3", "cpu"): (_GLYPHS,),
    ("table S4", "paper"): (_paper("table-s4", "paper-two-phases"),),
    ("table S4", "cpu"): (_GLYPHS,),
    ("figure 1", "paper"): (_paper("figure-1", "paper-figures"),),
    ("figure 1", "cpu"): (_GLYPHS,),
    ("figure 2", "paper"): (_paper("figure-2", "paper-figures"),),
    ("figure 2", "cpu"): (_GLYPHS,),
}
# The datasets that the networks are tested on in the right half of Table 1.
DOMAINS = {
    "paper": ("tiered_imagenet", "cub", "cars"),
    "cpu": ("omniglot", "glyphs", "mnist", "fashion_mnist"),
}
# The shots of the figures.
FIGURE_SHOTS = {"paper": (1, 5), "cpu": (5,)}
# The seeds of the runs that Figures 2 and S2 have for themselves.
SWEPT_SEEDS = {"paper": 5, "cpu": 3}


def swept(flags: Flags, shots: int, method: str, **varied: Any) -> tuple[str, FewShotConfig]:
    """A run of Figures 2 and S2: its folder's name and configuration, as in `Setting.run`."""
    (setting,) = SETTINGS["figure 2", flags.scale]
    usual, _ = setting.run(flags, shots, method)
    name, config = setting.run(flags, shots, method, **varied)
    if name == usual:  # Table 1 has it with more seeds
        return name, config
    return name, dataclasses.replace(config, seeds=SWEPT_SEEDS[flags.scale])


def with_steps(flags: Flags, shots: int, method: str, steps: int) -> tuple[str, FewShotConfig]:
    """The run of Figure 2 with `steps` inner steps, as in `swept`."""
    return swept(flags, shots, method, inner_steps=steps, test_inner_steps=steps, inner_lr=0.1)
