"""The flags of `experiments.reproduce`."""

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
    """Run what a table or figure of the paper needs, and print our numbers next to the paper's."""

    table: (
        Literal[
            "1", "S1", "S2", "S3", "S4", "3", "S5", "S6", "S7", "S7-choices", "S7-augmented", "S8",
            "S8-full", "S8-lead", "S9", "few-shot",
        ]
        | None
    ) = None  # fmt: skip
    """1: few-shot accuracies of every method, also on other domains; S1: ResNet-12; S2: settings of
    the sparse methods; S3: without biases, and with other statistics of batch norm; S4: theta
    first, then only the mask; 3: accuracies of every method on every stream of digits; S5:
    sparsity; S6: settings chosen on held-out images; S7: Split-CIFAR-10; S7-choices: effect of the
    choices that S7 leaves open; S7-augmented: whole streams of augmented images; S8: online
    accuracies on a switching stream; S8-full: whole streams with one seed; S8-lead: sparse-C-MAML
    minus C-MAML, by part of the stream; S9: accuracies and rates of C-MAML's variants; few-shot:
    glyphs, Omniglot and miniImageNet (not a table of the paper)"""
    figure: Literal["1", "2", "S1", "S2", "3", "S3", "S4"] | None = None
    """1: few-shot, sparsity of the weights over training by initial sparsity; S1: the same for
    batch-norm gains and biases; 2: accuracy against the number of inner steps; S2: the same, and
    accuracy and sparsity against the width; 3: sparsity by task, and against layer width, on
    rotations; S3: accuracy and sparsity against alpha_0; S4: sparsity by task, accuracy and
    sparsity against layer width, on permuted streams"""
    sweep: bool = False
    """S2, S6, S9: choose settings by sweeps over ranges around the paper's (see experiments.sweep),
    one for each method, and print them beside the paper's choice"""
    claims: bool = False
    """write docs/claims.md: each claim of the paper, and what the results files say about it"""
    streams: tuple[StreamName, ...] = StreamName.__args__  # type: ignore[attr-defined]
    """streams of digits, if the table has several"""
    methods: tuple[MethodName, ...] = ()
    """methods, if the table has several; default: all of the table"""
    memories: tuple[int, ...] = (200, 1000)
    """S7, S7-choices, S7-augmented: images in memory"""
    p: tuple[float, ...] = (0.98, 0.9)
    """S8, S8-full, S8-lead, S9: probabilities that the task does not switch"""
    timesteps: int = 10_000
    """S8, S8-lead, S9: batches of the stream"""
    seeds: int = 5
    """number of seeds: 0, 1, ..."""
    scale: Literal["paper", "cpu"] = "cpu"
    """tables 1 and S1 to S4, figures 1, 2, S1 and S2, and --sweep: the paper's settings, which want
    GPUs, or the same comparison on small images; see experiments/tables/scales.py"""
    data_dir: str | None = None
    """folder of the data; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    out: Path | None = None
    """folder of the runs and figures; finished runs are not repeated, stopped ones are resumed;
    default: runs/reproduce; with --no-run, runs are read from results/ unless it is given"""
    run: bool = True
    """run what is missing; --no-run only shows existing runs: those in --out, else those in the
    table's file in results/, with the seeds and other settings stored there"""
    save: bool = False
    """write the runs that are shown into the table's file in results/, and a figure's picture"""
    keep: bool = False
    """take the runs that --out lacks from the files in results/: they are not run again, and --save
    keeps them"""
    document: bool = False
    """write the table into its section of docs/reproducing"""
