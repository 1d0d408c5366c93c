"""Seconds from the start of the process to the end of the first training step.

python -m benchmarks.startup
python -m benchmarks.startup --repeats 1 --out startup.json
"""

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import machine
from benchmarks.command import RESULTS, check_least, one_line_ends
from experiments import cli

PROG = "python -m benchmarks.startup"
ROOT = Path(__file__).resolve().parent.parent
JOB = ("--shots=5",)  # the quick start of the README

# The content of the cache folder when the process starts.
CASES = {
    "empty": "empty cache folder: the letters are rendered, too",
    "cold": "rendered letters in the cache, no compiled programs",
    "warm": "rendered letters and compiled programs in the cache",
}
STAGES = ("imports", "data", "set_up", "compile", "first_step")

Seconds = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time the start of the README's quick start in fresh processes, for three cache states."""

    repeats: int = 3
    """processes for each state of the cache; medians are reported"""
    out: Path | None = None
    """file of the results; default: startup.json in benchmarks/results, in the machine's folder"""


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, measure, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    check_least(flags, {"repeats": 1})
    from benchmarks import report

    with one_line_ends():
        about = machine.describe("cpu")
        out = flags.out or RESULTS / machine.slug(about) / "startup.json"
        report.prepare(out.parent)
        runs = measure(flags.repeats)
        middle = {name: medians(of) for name, of in runs.items()}
        results = {name: {"median": middle[name], "runs": runs[name]} for name in CASES}
        record = {"job": " ".join(JOB), "cases": CASES, "machine": about, "seconds": results}
        report.publish(out.parent, {out.name: report.to_json(record)})
        for name in CASES:
            print(line(name, middle[name]))
        print(f"results: {out}")


def measure(repeats: int, job: Sequence[str] = JOB) -> dict[str, list[Seconds]]:
    """Start the job `repeats` times with each state of the cache; returns the stages by state."""
    runs: dict[str, list[Seconds]] = {name: [] for name in CASES}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name in CASES:  # each start fills the cache for the next
                if name == "cold":
                    shutil.rmtree(Path(cache) / "xla")
                runs[name].append(stages(start(Path(cache), job)))
    return runs


def start(cache: Path, job: Sequence[str]) -> Seconds:
    """Run the job in a fresh process up to its second meta-step; returns the time of each mark."""
    hidden = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"JAXSPARSE_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "marks.json"
        program = "from benchmarks import startup; startup.take_two_steps()"
        command = [sys.executable, "-c", program, str(time.time()), str(record)]
        command += [*job, f"--out={folder}/run"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        if not record.exists():
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            cli.fail(f"the job ended before its second step: {lines[-1][:300]}", status=1)
        return json.loads(record.read_text())


def take_two_steps() -> NoReturn:
    """In the fresh process: run the job, record the times, exit after the second step."""
    started, record, *job = sys.argv[1:]
    from experiments import fewshot, report

    marks: Seconds = {}
    load_data = fewshot.load_data

    def mark(name: str) -> None:
        marks.setdefault(name, time.time() - float(started))

    def timed_load_data(config: Any) -> Any:
        mark("imports")
        data = load_data(config)
        mark("data")
        return data

    def progress(_: Any, now: Any) -> None:
        mark(("set_up", "first_step", "second_step")[now.step])
        if now.step == 1:
            marks["processor"] = time.process_time()
        elif now.step == 2:
            Path(record).write_text(json.dumps(marks))
            os._exit(0)

    fewshot.load_data = timed_load_data
    setattr(report.ConsoleReport, "progress", progress)  # noqa: B010
    fewshot.main(job)
    sys.exit("the job has fewer than two steps")


def stages(marks: Seconds) -> Seconds:
    """The seconds of each stage, their total, and CPU seconds ("processor").

    CPU seconds depend less on other load. The second step compiles nothing: its time is taken as
    that of the first step, and the rest of the first step as compilation.
    """
    step = marks["second_step"] - marks["first_step"]
    ends = (0.0, marks["imports"], marks["data"], marks["set_up"], marks["first_step"] - step)
    seconds = {stage: ends[i + 1] - ends[i] for i, stage in enumerate(STAGES[:-1])}
    seconds |= {"first_step": step, "total": marks["first_step"], "processor": marks["processor"]}
    return {name: round(value, 3) for name, value in seconds.items()}


def medians(runs: Sequence[Seconds]) -> Seconds:
    """The median of each entry."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def line(name: str, seconds: Seconds) -> str:
    """The printed line for a state of the cache."""
    parts = ", ".join(f"{stage.replace('_', ' ')} {seconds[stage]:.1f}" for stage in STAGES)
    total, processor = seconds["total"], seconds["processor"]
    return f"{name:>5}: {total:5.1f} s ({parts}; processor {processor:.1f}): {CASES[name]}"


if __name__ == "__main__":
    main()
