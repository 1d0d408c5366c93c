"""All tables and figures of `experiments.reproduce`, with the flags that each reads."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.tables import (
    continual,
    few_shot,
    few_shot_figures,
    figures,
    online,
    paper_few_shot,
    split_cifar,
    sweeps,
)
from experiments.tables.markdown import Lines

# For each flag its values, or None for any.
Known = Mapping[str, tuple[Any, ...] | None]


class Reads(NamedTuple):
    """A table or figure and its flags.

    Attributes:
      show: `(flags, runner) -> lines`.
      flags: the flags it reads in addition to `data_dir`, `out`, `run`, `save` and `document`,
        which all read.
    """

    show: Callable[..., Lines]
    flags: Known


_STREAMS, _MEMORIES = continual.STREAMS, split_cifar.MEMORIES
_SCALE = {"scale": None}
READS: dict[str, Reads] = {
    "table 1": Reads(paper_few_shot.table_1, _SCALE),
    "table S1": Reads(paper_few_shot.table_s1, _SCALE),
    "table S2": Reads(paper_few_shot.table_s2, _SCALE),
    "table S3": Reads(paper_few_shot.table_s3, _SCALE),
    "table S4": Reads(paper_few_shot.table_s4, _SCALE),
    "table 3": Reads(
        continual.accuracies, {"streams": _STREAMS, "methods": continual.METHODS, "seeds": None}
    ),
    "table S5": Reads(continual.sparsities, {"streams": _STREAMS, "seeds": None}),
    "table S6": Reads(continual.settings, {"streams": _STREAMS, "seeds": None}),
    "table S7": Reads(
        split_cifar.accuracies,
        {"methods": split_cifar.METHODS, "memories": _MEMORIES, "seeds": None},
    ),
    "table S7-choices": Reads(
        split_cifar.choices, {"methods": split_cifar.CHOICE_METHODS, "memories": _MEMORIES}
    ),
    "table S7-augmented": Reads(
        split_cifar.augmented, {"methods": split_cifar.AUGMENTED_METHODS, "memories": _MEMORIES}
    ),
    "table S8": Reads(
        online.accuracies,
        {"methods": online.S8_METHODS, "p": None, "timesteps": None, "seeds": None},
    ),
    "table S8-full": Reads(online.whole, {"methods": online.S8_METHODS, "p": None}),
    "table S8-lead": Reads(online.lead, {"p": None, "timesteps": None, "seeds": None}),
    "table S9": Reads(
        online.settings,
        {"methods": online.S9_METHODS, "p": None, "timesteps": None, "seeds": None},
    ),
    "table few-shot": Reads(few_shot.accuracies, {}),
    "figure 1": Reads(few_shot_figures.figure_1, _SCALE),
    "figure 2": Reads(few_shot_figures.figure_2, _SCALE),
    "figure S1": Reads(few_shot_figures.figure_s1, _SCALE),
    "figure S2": Reads(few_shot_figures.figure_s2, _SCALE),
    "figure 3": Reads(figures.figure_3, {"seeds": None}),
    "figure S3": Reads(figures.figure_s3, {"streams": _STREAMS, "seeds": None}),
    "figure S4": Reads(figures.figure_s4, {"seeds": None}),
}

# The tables that have settings to choose, with --sweep.
SWEEPS: dict[str, Reads] = {
    "table S2": Reads(sweeps.table_s2, _SCALE),
    "table S6": Reads(sweeps.table_s6, {"streams": _STREAMS, "seeds": None, **_SCALE}),
    "table S9": Reads(
        sweeps.table_s9, {"methods": online.S9_METHODS, "p": None, "seeds": None, **_SCALE}
    ),
}
