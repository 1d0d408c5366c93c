"""The flags of `experiments.reproduce`, which its tables read."""

import dataclasses
from pathlib import Path
from typing import Literal

StreamName = Literal["rotations", "permutations", "many-permutations"]
MethodName = Literal[
    "sparse-lamaml", "lamaml", "sync-lamaml", "cmaml-sync", "er", "mer", "gem", "agem", "sgd",
    "iid", "sparse-cmaml", "sparse-relu-cmaml", "cmaml", "cmaml-fixed", "online-adam",
    "fine-tuning", "maml", "anil", "bgd", "metacog", "metabgd",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Flags:
    """Run what a table or figure of the paper needs, and print ours beside the paper's."""

    table: (
        Literal[
            "3", "S5", "S6", "S7", "S7-choices", "S7-augmented", "S8", "S8-lead", "S9", "few-shot"
        ]
        | None
    ) = None
    """3: accuracies of every method on every stream of digits; S5: sparsity; S6: settings chosen
    on held-out images; S7: Split-CIFAR-10; S7-choices: what the choices that S7 leaves open change;
    S7-augmented: whole streams of augmented images; S8: online accuracies on a switching stream;
    S8-lead: where sparse-C-MAML is above C-MAML; S9: accuracies of C-MAML's variants, with their
    rates; few-shot: glyphs, Omniglot and miniImageNet, no table of the paper"""
    figure: Literal["3", "S3", "S4"] | None = None
    """3: sparsity by task, and against layer width, on rotations; S3: accuracy and sparsity against
    alpha_0; S4: sparsity by task, accuracy and sparsity against layer width, on permuted streams"""
    streams: tuple[StreamName, ...] = StreamName.__args__  # type: ignore[attr-defined]
    """streams of digits, where the table has several"""
    methods: tuple[MethodName, ...] = ()
    """methods, where the table has several; none named: all of the table"""
    memories: tuple[int, ...] = (200, 1000)
    """S7, S7-choices, S7-augmented: images kept"""
    p: tuple[float, ...] = (0.98, 0.9)
    """S8, S8-lead, S9: probabilities of no switch of task"""
    timesteps: int = 10_000
    """S8, S8-lead, S9: batches of the stream"""
    seeds: int = 5
    """number of seeds: 0, 1, ..."""
    data_dir: str | None = None
    """where the data lies; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    out: Path | None = None
    """folder of the runs; those that are there are not run again, those begun go on; default:
    runs/reproduce, with --no-run none"""
    run: bool = True
    """run what is missing; --no-run only shows what is there: in --out, else in the file of this
    table in results/, with the seeds and other settings that it was saved with"""
    save: bool = False
    """write the runs that are shown into the file of this table in results/"""
    document: bool = False
    """write the table into REPRODUCIBILITY.md, between its marks"""
