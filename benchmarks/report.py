"""Tables and files of what was measured."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxsparse.training import writing

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

LEGEND = """\
compile s: what the first step takes longer than the next ones, in a fresh process with an \
empty cache of compiled programs (with a full one).
ms/inner step: a whole meta-step (inner loops, query gradients, the optimisers' updates) divided \
by tasks x K; median of the rounds, the forms taken in turn.
peak MB: of that process with the empty cache, compiler included (own: its growth from before the \
first step, with the full cache where there is one); on a GPU of the GPU's memory.
ratio: to the fastest of PyTorch's forms, same run.
roofline: floating-point operations of direct convolutions per second, as a share of the fastest \
large matrix product here; faster algorithms can pass 100%.
error: relative L2 difference of the meta-gradient to that of jaxsparse in float32, the larger one \
of the trees'; rounding tips max and ReLU ties, and later inner steps amplify that."""


def prepare(folder: Path) -> None:
    """Make the folder, and find out now whether it can be written.

    Raises:
      WriteError: it cannot.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def publish(folder: Path, name: str, content: str | bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
      WriteError: it cannot be written; what was there is left as it was.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / name, content.encode() if isinstance(content, str) else content)


def _replace(path: Path, content: bytes) -> None:
    number, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(partial).unlink()
        raise


def to_json(results: Mapping[str, Any]) -> str:
    """Indented JSON."""
    return json.dumps(results, indent=1) + "\n"


def cells(row: Mapping[str, Any], rate: float) -> list[str]:
    """The line of a contestant that worked."""
    error = max(row["errors"]["change"].values())
    return [
        row["form"],
        _cold_and_warm(row),
        f"{row['ms_per_inner_step']:.2f}",
        f"{row['tasks_per_s']:.2f}",
        _memory(row),
        f"{row['ratio']:.2f}" if row["ratio"] else "-",
        f"{100 * row['flops_per_s'] / rate:.0f}%",
        f"{error:.0e}" if error else "0",
    ]


def _cold_and_warm(row: Mapping[str, Any]) -> str:
    if "cold" not in row:
        return "-"
    warm = f" ({row['warm']['compile_s']:.1f})" if "warm" in row else ""
    return f"{row['cold']['compile_s']:.1f}{warm}"


def _memory(row: Mapping[str, Any]) -> str:
    if "cold" not in row:
        return "-"
    return f"{row['cold']['peak_bytes'] / 1e6:.0f} ({own_bytes(row) / 1e6:.0f})"


def own_bytes(row: Mapping[str, Any]) -> float:
    """Growth of a contestant's memory since before its first step, the compiler's left out."""
    start = row.get("warm", row["cold"])
    return start["peak_bytes"] - start["base_bytes"]


def show(console: Console, results: Mapping[str, Any]) -> None:
    """Print the tables, what they mean, and where they are from."""
    rate = results["matmul_flops_per_s"]["best"]
    for entry in results["cases"]:
        table = Table(title=entry["name"], title_justify="left")
        for index, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
        for row in entry["rows"]:
            if "failed" not in row:
                table.add_row(*cells(row, rate))
        console.print(table)
        for line in _failures(entry):
            console.print(line)
    console.print(LEGEND + "\n" + machine_line(results), highlight=False)


def markdown(results: Mapping[str, Any]) -> str:
    """The same as a Markdown document."""
    rate = results["matmul_flops_per_s"]["best"]
    lines = ["# One meta-step of each form", "", machine_line(results), ""]
    for entry in results["cases"]:
        lines += [f"## {entry['name']}", "", markdown_table(COLUMNS, []).strip()]
        for row in entry["rows"]:
            if "failed" not in row:
                lines.append(_markdown_row(cells(row, rate)))
        lines += ["", *_failures(entry)]
    return "\n".join([*lines, "", *(f"- {line}" for line in LEGEND.splitlines())]) + "\n"


def markdown_table(columns: Any, rows: Any) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    rule = "|" + "|".join("---" if i == 0 else "---:" for i, _ in enumerate(columns)) + "|"
    return "\n".join([_markdown_row(columns), rule, *map(_markdown_row, rows)]) + "\n"


def _markdown_row(values: Any) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def _failures(entry: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['form']} does not work here: {row['failed']}"
        for row in entry["rows"]
        if "failed" in row
    ]


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
