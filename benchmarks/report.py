"""Tables and files of the results."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from jaxsparse.training import writing
from jaxsparse.training.files import replacing

WIDTH = 100  # of tables, without a terminal
COLUMNS = (
    "form",
    "compile s (cached)",
    "ms/inner step",
    "tasks/s",
    "peak MB (growth)",
    "ratio",
    "roofline",
    "error",
)

LEGEND = (
    "compile s: how much longer the first step takes than the next ones, in a fresh process with an"
    " empty compilation cache (cached: with a filled one).",
    "ms/inner step: a whole meta-step (inner loops, query gradients, optimiser updates) divided by"
    " tasks x K; median of the rounds, all forms in turn.",
    "peak MB: peak memory of the process with the empty cache, including the compiler (growth: from"
    " before the first step, with the filled cache if the form is compiled); on a GPU, the GPU's"
    " memory.",
    "ratio: time divided by that of the fastest of PyTorch's forms in the same run; below 1 is"
    " faster.",
    "roofline: floating-point operations of direct convolutions per second, in % of the fastest"
    " large matrix product on this machine; faster algorithms can exceed 100%.",
    "error: relative L2 difference of the meta-gradient to that of jaxsparse in float32, the larger"
    " of parameters and mask. Rounding flips ReLUs and maxima; later inner steps amplify it.",
)


class Section(NamedTuple):
    """A table with a title, and notes below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


# ---- files


def prepare(folder: Path) -> None:
    """Make the folder, and check before measuring that it is writable."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def publish(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files, each atomically."""
    for name, content in files.items():
        with writing(folder), replacing(folder / name) as partial:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)


def to_json(results: Mapping[str, Any]) -> str:
    """Indented JSON."""
    return json.dumps(results, indent=1) + "\n"


# ---- tables


def show(sections: Iterable[Section], lines: Iterable[str]) -> None:
    """Print tables, and lines after them."""
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
    """A Markdown document: the machine, list items, the sections, list items."""
    return document(title, machine_line(results), sections, before, after)


def document(
    title: str,
    line: str,
    sections: Iterable[Section],
    before: Iterable[str] = (),
    after: Iterable[str] = (),
) -> str:
    """A Markdown document: a line about the results, list items, the sections, list items."""
    lines = [f"# {title}", "", line, "", *_points(before)]
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
        f" {results['repeats']} rounds; {versions}; convolution blocks: {m['blocks']};"
        f" {m['date']}; {m['command']}"
    )


# ---- results of `harness.compare`


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
    """The row of a form that did not fail."""
    error = max(row["errors"]["change"].values())
    compiling = memory = "-"
    if "cold" in row:
        cold, later = row["cold"], row.get("warm", row["cold"])
        cached = f" ({later['compile_s']:.1f})" if "warm" in row else ""
        compiling = f"{cold['compile_s']:.1f}{cached}"
        growth = later["peak_bytes"] - later["base_bytes"]
        memory = f"{cold['peak_bytes'] / 1e6:.0f} ({growth / 1e6:.0f})"
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
