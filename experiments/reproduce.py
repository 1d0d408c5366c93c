"""Tables and figures of the paper: run what they need, and print ours beside the paper's.

python -m experiments.reproduce --table S5
python -m experiments.reproduce --table 3 --methods sparse-lamaml er
python -m experiments.reproduce --figure S3
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments import cli

if TYPE_CHECKING:
    from jaxsparse.training.continual import ContinualConfig

PROG = "python -m experiments.reproduce"
DOCUMENT = Path(__file__).resolve().parent.parent / "REPRODUCIBILITY.md"

StreamName = Literal["rotations", "permutations", "many-permutations"]
MethodName = Literal[
    "sparse-lamaml", "lamaml", "sync-lamaml", "cmaml-sync", "er", "mer", "gem", "agem", "sgd", "iid"
]
MEMORIES = (200, 1000)
INNER_RATES = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
WIDTHS = (25, 50, 100, 200, 400)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Run what a table or figure of the paper needs, and print ours beside the paper's."""

    table: Literal["3", "S5", "S6", "S7"] | None = None
    """3: accuracies of every method on every stream of digits; S5: sparsity; S6: settings chosen
    on held-out images; S7: Split-CIFAR-10"""
    figure: Literal["S3", "S4"] | None = None
    """S3: accuracy and sparsity against alpha_0; S4: sparsity by task, and against layer width"""
    streams: tuple[StreamName, ...] = StreamName.__args__  # type: ignore[attr-defined]
    """streams of digits, where the table has several"""
    methods: tuple[MethodName, ...] = MethodName.__args__  # type: ignore[attr-defined]
    """methods, where the table has several"""
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
        from experiments import tables

        name = f"table {flags.table}" if flags.table else f"figure {flags.figure}"
        show: dict[str, Callable[[Flags, Runner], list[str]]] = {
            "table 3": tables.accuracies,
            "table S5": tables.sparsities,
            "table S6": tables.settings,
            "table S7": tables.split_cifar,
            "figure S3": tables.figure_s3,
            "figure S4": tables.figure_s4,
        }
        lines = show[name](flags, Runner(flags, f"{PROG} {' '.join(given)}"))
        print("\n".join(lines))
        if flags.document:
            write_section(DOCUMENT, name, lines)


class Runner:
    """Gives the results of runs, running those that are missing."""

    def __init__(self, flags: Flags, command: str):
        self.flags, self.command = flags, command

    def result(self, name: str, config: "ContinualConfig") -> dict[str, Any] | None:
        """The result of a run called `name`; None where it is not there and not to be run.

        Raises:
          RunError: the folder holds a run of another configuration.
        """
        from experiments import continual

        folder = self._folder(name, config)
        if not self.flags.run:
            return folder.result() if folder else None
        return continual.run(config, folder or self.flags.out / name, self.command)

    def scan(
        self, name: str, config: "ContinualConfig", grid: Any
    ) -> tuple["ContinualConfig", list[dict[str, Any]]] | None:
        """The configuration a scan chooses, and its points; None as for `result`."""
        from experiments import continual

        out = self.flags.out / name
        paths = [continual.scan_path(out, glances) for glances in grid.glances]
        if not self.flags.run and not all((path / "result.json").is_file() for path in paths):
            return None
        return continual.scan(config, grid, out, self.command)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The metrics of a run that is there."""
        from jaxsparse.training import RunFolder

        return RunFolder.open(self.flags.out / name, "task").rows()

    def _folder(self, name, config):
        from jaxsparse.training import RunError, RunFolder

        path = self.flags.out / name
        if not (path / "config.json").is_file():
            return None
        folder = RunFolder.open(path, "task")
        there = {n: v for n, v in folder.config()["config"].items() if n != "data_dir"}
        wanted = {n: v for n, v in dataclasses.asdict(config).items() if n != "data_dir"}
        if there != wanted:
            differences = cli.differing(wanted, there)
            raise RunError(f"{path} holds a run of another configuration: {differences}")
        return folder


def cell_config(flags: Flags, stream: str, method: str, **settings: Any) -> "ContinualConfig":
    """The published settings of a method on a stream, with the flags' seeds."""
    from experiments.continual_presets import preset_config

    config = preset_config(stream, method, memories=settings.get("memories", 0))
    return dataclasses.replace(config, seeds=flags.seeds, data_dir=flags.data_dir, **settings)


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
