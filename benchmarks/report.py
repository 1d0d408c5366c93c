"""Tables and files of what was measured."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from jaxsparse.training import writing
from jaxsparse.training.files import replacing

WIDTH = 100  # of the tables where no terminal says what fits
COLUMNS = (
    "form",
    "compile s (cached)",
    "ms/inner step",
    "tasks/s",
    "peak MB (own)",
    "ratio",
    "roofline",
    "error",
)

LEGEND = (
    "compile s: what the first step takes longer than the next ones, in a fresh process with an"
    " empty cache of compiled programs (with a full one).",
    "ms/inner step: a whole meta-step (inner loops, query gradients, the optimisers' updates)"
    " divided by tasks x K; median of the rounds, the forms taken in turn.",
    "peak MB: of that process with the empty cache, compiler included (own: its growth from before"
    " the first step, with the full cache where there is one); on a GPU of the GPU's memory.",
    "ratio: to the fastest of PyTorch's forms, same run.",
    "roofline: floating-point operations of direct convolutions per second, as a share of the"
    " fastest large matrix product here; faster algorithms can pass 100%.",
    "error: relative L2 difference of the meta-gradient to that of jaxsparse in float32, the larger"
    " one of the trees'; rounding tips max and ReLU ties, and later inner steps amplify that.",
)


class Section(NamedTuple):
    """A table with a title, and lines below it.

    Attributes:
      title: its heading.
      columns: the headings of the columns.
      rows: the cells of each row.
      notes: lines below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


# ---- files


def prepare(folder: Path) -> None:
    """Make the folder, and find out now whether it can be written.

    Raises:
      WriteError: it cannot.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def publish(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files, each whole or not at all.

    Raises:
      WriteError: one cannot be written; what was there is left as it was.
    """
    for name, content in files.items():
        with writing(folder), replacing(folder / name) as partial:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)


def to_json(results: Mapping[str, Any]) -> str:
    """Indented JSON."""
    return json.dumps(results, indent=1) + "\n"


# ---- tables


def show(sections: Iterable[Section], lines: Iterable[str]) -> None:
    """Print tables and what is to be said after them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for section in sections:
        table = Table(title=section.title, title_justify="left")
        for index, column in enumerate(section.columns):
            table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
        for note in section.notes:
            console.print(note)
    console.print("\n".join(lines), highlight=False)


def markdown(
    title: str,
    results: Mapping[str, Any],
    sections: Iterable[Section],
    before: Iterable[str] = (),
    after: Iterable[str] = (),
) -> str:
    """A Markdown document: the machine, points, the sections, points."""
    lines = [f"# {title}", "", machine_line(results), "", *_points(before)]
    for section in sections:
        rule = ["---", *["---:"] * (len(section.columns) - 1)]
        lines += [f"## {section.title}", "", _row(section.columns), f"|{'|'.join(rule)}|"]
        lines += [*map(_row, section.rows), "", *section.notes, *[""] * bool(section.notes)]
    return "\n".join([*lines, *_points(after)])


def _points(texts: Iterable[str]) -> list[str]:
    points = [f"- {text}" for text in texts]
    return [*points, ""] if points else []


def _row(values: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def machine_line(results: Mapping[str, Any]) -> str:
    """The device, its roofline, versions and settings on one line."""
    m = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    rate = results["matmul_flops_per_s"]["best"] / 1e9
    return (
        f"{m['device']}, {m['cores']} cores, load {m['load_average']:.1f} at the start;"
        f" {rate:.0f} GFLOP/s in matrix products; {results['precision']},"
        f" {results['repeats']} rounds; {versions}; Conv4's blocks: {m['blocks']};"
        f" {m['date']}; {m['command']}"
    )


# ---- what `harness.compare` found


def case_sections(results: Mapping[str, Any]) -> list[Section]:
    """A table for each case."""
    rate = results["matmul_flops_per_s"]["best"]
    return [
        Section(
            entry["name"],
            COLUMNS,
            [cells(row, rate) for row in entry["rows"] if "failed" not in row],
            [
                f"{row['form']} does not work here: {row['failed']}"
                for row in entry["rows"]
                if "failed" in row
            ],
        )
        for entry in results["cases"]
    ]


def cells(row: Mapping[str, Any], rate: float) -> list[str]:
    """The line of a form that worked."""
    error = max(row["errors"]["change"].values())
    compiling = memory = "-"
    if "cold" in row:
        cold, later = row["cold"], row.get("warm", row["cold"])
        cached = f" ({later['compile_s']:.1f})" if "warm" in row else ""
        compiling = f"{cold['compile_s']:.1f}{cached}"
        own = later["peak_bytes"] - later["base_bytes"]
        memory = f"{cold['peak_bytes'] / 1e6:.0f} ({own / 1e6:.0f})"
    return [
        row["form"],
        compiling,
        f"{row['ms_per_inner_step']:.2f}",
        f"{row['tasks_per_s']:.2f}",
        memory,
        f"{row['ratio']:.2f}" if row["ratio"] else "-",
        f"{100 * row['flops_per_s'] / rate:.0f}%",
        f"{error:.0e}" if error else "0",
    ]
