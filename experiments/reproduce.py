"""Tables and figures of the paper: run what they need, and print ours beside the paper's.

python -m experiments.reproduce --table S5
python -m experiments.reproduce --table 3 --methods sparse-lamaml er
python -m experiments.reproduce --table S8 --p 0.98 --seeds 3 --timesteps 1000
python -m experiments.reproduce --figure S3
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments import cli

PROG = "python -m experiments.reproduce"
DOCUMENT = Path(__file__).resolve().parent.parent / "REPRODUCIBILITY.md"

StreamName = Literal["rotations", "permutations", "many-permutations"]
MethodName = Literal[
    "sparse-lamaml", "lamaml", "sync-lamaml", "cmaml-sync", "er", "mer", "gem", "agem", "sgd",
    "iid", "sparse-cmaml", "sparse-relu-cmaml", "cmaml", "cmaml-fixed", "online-adam",
    "fine-tuning", "maml", "anil", "bgd", "metacog", "metabgd",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Flags:
    """Run what a table or figure of the paper needs, and print ours beside the paper's."""

    table: Literal["3", "S5", "S6", "S7", "S7-choices", "S8", "S9"] | None = None
    """3: accuracies of every method on every stream of digits; S5: sparsity; S6: settings chosen
    on held-out images; S7: Split-CIFAR-10; S7-choices: what the choices that S7 leaves open change;
    S8: online accuracies on a switching stream; S9: those of C-MAML's kin, with their rates"""
    figure: Literal["3", "S3", "S4"] | None = None
    """3: sparsity by task, and against layer width, on rotations; S3: accuracy and sparsity against
    alpha_0; S4: sparsity by task, accuracy and sparsity against layer width, on permuted streams"""
    streams: tuple[StreamName, ...] = StreamName.__args__  # type: ignore[attr-defined]
    """streams of digits, where the table has several"""
    methods: tuple[MethodName, ...] = ()
    """methods, where the table has several; none named: all of the table"""
    memories: tuple[int, ...] = (200, 1000)
    """S7, S7-choices: images kept"""
    p: tuple[float, ...] = (0.98, 0.9)
    """S8, S9: probabilities of no switch of task"""
    timesteps: int = 10_000
    """S8, S9: batches of the stream"""
    seeds: int = 5
    """number of seeds: 0, 1, ..."""
    data_dir: str | None = None
    """where the data lies; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    out: Path = Path("runs/reproduce")
    """folder of the runs; those that are there are not run again, those begun go on"""
    run: bool = True
    """run what is missing; --no-run only shows what is there"""
    document: bool = False
    """write the table into REPRODUCIBILITY.md, between its marks"""


def main(args: Sequence[str] | None = None) -> None:
    """Read the flags, run what is missing, print the table."""
    cli.leave_on_signal()
    given = list(sys.argv[1:] if args is None else args)
    with cli.one_line_errors():
        flags = cli.parse(Flags, given, Flags(), PROG)
        if (flags.table is None) == (flags.figure is None):
            cli.fail("name one --table or one --figure")
        if flags.seeds < 1:
            cli.fail(f"--seeds must be 1 or more, got {flags.seeds}")
        cli.use_all_cores()
        cli.use_compilation_cache()
        # Imported here and not above: Ctrl-C during these seconds is one line, too.
        from experiments.tables import READS
        from experiments.tables.runner import Runner

        name = f"table {flags.table}" if flags.table else f"figure {flags.figure}"
        runner = Runner(flags.out, flags.run, f"{PROG} {' '.join(given)}")
        lines = READS[name].show(flags, runner)
        print("\n".join(lines))
        if flags.document:
            runner.check_found()
            write_section(DOCUMENT, name, lines)


def write_section(path: Path, name: str, lines: list[str]) -> None:
    """Put lines between the marks of a section; what is outside them stays.

    Raises:
      RunError: the document has no such marks.
    """
    from jaxsparse.training import RunError, writing

    text = path.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise RunError(f"{path} has no marks {begin} and {end}")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    with writing(path):
        path.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")


if __name__ == "__main__":
    main()
