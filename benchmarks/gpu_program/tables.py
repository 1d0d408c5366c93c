"""The tables of the results."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import report
from benchmarks.gpu_program import target
from benchmarks.gpu_program.account import PRECISIONS
from benchmarks.gpu_program.measure import label
from benchmarks.report import Section

TITLE = "What our programs cost at least on an NVIDIA H200"
COLUMNS = (
    "case",
    "kernels/step",
    "GB/step",
    "kernels",
    "GB",
    "GFLOP",
    "float32 ms",
    "TF32 ms",
    "temp MB",
)
RUN_COLUMNS = (
    "part",
    "times",
    "kernels",
    "TB",
    "PFLOP",
    "float32 min",
    "TF32 min",
)
LEGEND = (
    "Compiled by XLA for a described GPU. Nothing was run; no device has confirmed the bounds.",
    "kernels/step, GB/step: of an inner step of all tasks of the batch. The other columns: of the"
    " whole program.",
    "ms, min: the least time, the sum over all kernels of a launch,"
    f" {1e6 * target.LAUNCH:.1f} us (an assumption), and the larger of bytes /"
    f" {target.BANDWIDTH / 1e12:.1f} TB/s and operations / {target.RATES['float32'] / 1e12:.0f}"
    f" TFLOP/s (float32) or {target.RATES['tensorfloat32'] / 1e12:.0f} TFLOP/s (TF32:"
    " TensorFloat-32). In parentheses: the operations alone. temp MB: temporary memory, without"
    " arguments and results.",
    "GB: what all kernels read and write. An array counts for each kernel that reads it, although"
    " it may still be in the cache. GFLOP: products and direct convolutions.",
    "Not in it: caches, other algorithms (Winograd), autotuning, gaps between kernels, cuDNN's"
    " choices, several kernels behind one call.",
    "84: the settings of Table S2, K = 35. 28: those of Omniglot, K = 5. Evaluation: K = 100. Other"
    " cases in benchmarks/gpu_program/cases.py.",
)


def sections(results: Mapping[str, Any]) -> list[Section]:
    """A table for each group of cases, and one for each whole run."""
    entries = list(results["cases"].values())
    groups = dict.fromkeys(entry["group"] for entry in entries)
    tables = [_group([entry for entry in entries if entry["group"] == name]) for name in groups]
    return [*tables, *map(_whole_run, results["whole_runs"].values())]


def markdown(results: Mapping[str, Any]) -> str:
    """The tables as a document."""
    entries = [*results["cases"].values(), *results["whole_runs"].values()]
    versions = {", ".join(f"{k} {v}" for k, v in entry["versions"].items()) for entry in entries}
    dates = sorted(entry["date"][:10] for entry in entries)
    line = f"{'; '.join(sorted(versions))}; {dates[0]} to {dates[-1]}" if dates else ""
    return report.document(TITLE, line, sections(results), after=LEGEND)


def _group(entries: list[Mapping[str, Any]]) -> Section:
    units = dict.fromkeys(entry["unit"] for entry in entries)
    notes = [
        f"{label(entry)}: the operations of {', '.join(entry['uncounted'])} are not counted."
        for entry in entries
        if entry["uncounted"]
    ]
    title = f"{entries[0]['group']}: one {' or one '.join(units)}"
    return Section(title, COLUMNS, [_row(entry) for entry in entries], notes)


def _row(entry: Mapping[str, Any]) -> list[str]:
    step = entry["inner_step"]
    return [
        label(entry),
        f"{step['kernels']:.0f}",
        _number(step["GB"]),
        f"{entry['kernels']:.0f}",
        _number(entry["GB"]),
        _number(entry["GFLOP"]),
        *(_times(entry, precision) for precision in PRECISIONS),
        f"{entry['temp_bytes'] / 1e6:.0f}",
    ]


def _times(entry: Mapping[str, Any], precision: str, unit: float = 1) -> str:
    """The bound, and that of the operations alone, in ms / unit."""
    both = (entry[name][precision] / unit for name in ("ms", "operations_ms"))
    return "{} ({})".format(*map(_number, both))


def _number(value: float) -> str:
    """Three digits, without an exponent where it is readable."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _whole_run(run: Mapping[str, Any]) -> Section:
    config = run["config"]
    title = (
        f"A run of Table S2, {config['shots']} shots, one seed, compiled in {run['precision']}:"
        f" {run['meta_steps']:,} meta-steps of {config['meta_batch_size']} tasks, K ="
        f" {config['inner_steps']}; {config['epochs']} validations of {config['val_tasks']} tasks"
        f" and a test of {config['test_tasks']}, K = {config['test_inner_steps']}, in batches of"
        f" {run['evaluation_batch']}"
    )
    rows = [
        [
            part["name"],
            f"{part['times']:,}",
            f"{part['kernels']:,.0f}",
            _number(part["GB"] / 1e3),
            _number(part["GFLOP"] / 1e6),
            *(_times(part, precision, 60e3) for precision in PRECISIONS),
        ]
        for part in run["parts"]
    ]
    return Section(title, RUN_COLUMNS, rows)


def kernel_lines(entry: Mapping[str, Any], count: int) -> Iterable[str]:
    """The kernels of an entry with the most time: each once, and how often it runs."""
    yield label(entry)
    for kernel in entry["largest"][:count]:
        yield (
            f"  {kernel['times']:5.0f} x {1e3 * kernel['GB']:9.2f} MB"
            f" {kernel['GFLOP']:8.2f} GFLOP {1e3 * kernel['ms']['float32']:8.1f} us"
            f"  {kernel['op']} {kernel['name']}"
        )
