"""How many workers a sweep's database carries: real workers, then a simulation of up to 1,000.

python -m benchmarks.sweep_workers
python -m benchmarks.sweep_workers --storage postgresql+psycopg://USER@HOST/DATABASE
"""

import dataclasses
import heapq
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.command import RESULTS, check_least, one_line_ends, say
from experiments import cli

PROG = "python -m benchmarks.sweep_workers"
ROOT = Path(__file__).resolve().parent.parent
ROWS = 10  # values that a trial reports on its way, for pruning
SPACE = "x=0:1"
SLOTS = 20_000


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure the database of a sweep with workers whose trials take no time; then simulate."""

    storage: str | None = None
    """URL of an empty database; default: an SQLite file"""
    workers: tuple[int, ...] = (1, 2, 4)
    """numbers of real workers"""
    seconds: float = 10.0
    """how long each number of workers is measured"""
    running: tuple[int, ...] = (0, 100, 1000)
    """numbers of other running trials with which taking a trial is timed"""
    simulated: tuple[int, ...] = (1, 10, 30, 100, 300, 1000)
    """numbers of simulated workers"""
    minutes: tuple[float, ...] = (1.0, 10.0, 60.0)
    """minutes of a simulated trial"""
    out: Path | None = None
    """file of the results; default: sweep-workers-DATABASE.json in the machine's folder"""


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, measure, simulate, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    check_least(flags, {"seconds": 1})
    from benchmarks import report

    with one_line_ends(), tempfile.TemporaryDirectory() as folder:
        cli.need_optuna("benchmarks.sweep_workers")
        about = machine.describe("cpu")
        url = flags.storage or f"sqlite:///{folder}/study.db"
        name = url.partition(":")[0].partition("+")[0]
        out = flags.out or RESULTS / machine.slug(about) / f"sweep-workers-{name}.json"
        report.prepare(out.parent)
        measured = measure(url, flags)
        cost = costs(measured)
        simulated = [
            {"workers": n, "minutes": minutes, **simulate(n, 60 * minutes, cost)._asdict()}
            for minutes in flags.minutes
            for n in flags.simulated
        ]
        record = {"machine": about, "database": name, **measured, "cost": cost._asdict()}
        text = report.to_json({**record, "simulated": simulated})
        report.publish(out.parent, {out.name: text})
        print("\n".join(lines(record, simulated)))
        print(f"results: {out}")


# ---- real workers


def measure(url: str, flags: Flags) -> dict[str, Any]:
    """Rates of real workers, and the seconds of taking a trial beside running ones."""
    by_workers = []
    for count in flags.workers:
        say(f"{count} workers")
        parts = [_start(url, f"rate-{count}", "rate", flags.seconds) for _ in range(count)]
        done = [_result(part) for part in parts]
        seconds = sum(part["seconds"] for part in done) / count
        trials, writes = (sum(part[name] for part in done) for name in ("trials", "writes"))
        by_workers.append(
            {"workers": count, "trials_per_second": trials / seconds, "writes": writes / trials}
        )
    beside = []
    for count in flags.running:
        say(f"a trial beside {count} running ones")
        taken = _result(_start(url, f"beside-{count}", "beside", count))
        beside.append({"running": count, "seconds": taken["seconds"]})
    return {"rates": by_workers, "taking": beside}


def _start(url: str, study: str, what: str, number: float) -> subprocess.Popen:
    program = "from benchmarks import sweep_workers; sweep_workers.work()"
    command = [sys.executable, "-c", program, url, study, what, str(number)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def _result(process: subprocess.Popen) -> dict[str, Any]:
    printed, _ = process.communicate()
    if process.returncode:
        cli.fail("a worker failed; its error is above", status=1)
    return json.loads(printed)


def work() -> None:
    """In a worker's process: measure, print the result as JSON."""
    url, study, what, number = sys.argv[1:]
    from sqlalchemy import event

    from experiments.sweep.samplers import make_sampler
    from experiments.sweep.slots import Slots
    from experiments.sweep.space import parse_space
    from experiments.sweep.studies import open_study, opened

    writes = 0

    def count(connection, cursor, statement, *unused):
        nonlocal writes
        writes += statement.startswith(("INSERT", "UPDATE"))

    from optuna.pruners import MedianPruner

    with opened(url, Path()) as storage:
        event.listen(storage.engine, "after_cursor_execute", count)
        sampler, pruner = make_sampler("random", 0), MedianPruner(n_warmup_steps=1)
        found = open_study(storage, study, {}, sampler, pruner)
        slots = Slots(found, [{}] * SLOTS, parse_space([SPACE], _Point()))
        if what == "rate":
            result = _rate(slots, storage, float(number))
        else:
            result = {"seconds": _beside(slots, storage, int(float(number)))}
        print(json.dumps({**result, "writes": writes}))


@dataclasses.dataclass(frozen=True)
class _Point:
    x: float = 0.0


def _rate(slots: Any, storage: Any, seconds: float) -> dict[str, Any]:
    begun, trials = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        _one(slots, storage)
        trials += 1
    return {"trials": trials, "seconds": time.monotonic() - begun}


def _one(slots: Any, storage: Any) -> None:
    """One trial of no length: taken, reported, finished."""
    while not (taken := slots.take(1)):
        pass  # another worker has just taken the same one
    (trial,) = taken
    with slots.held([trial], storage):
        for row in range(ROWS):
            trial.report(0.5, row)
            trial.should_prune()
        slots.finish(trial, 0.5)


def _beside(slots: Any, storage: Any, running: int, repeats: int = 5) -> float:
    """The median seconds of a trial of no length, beside `running` running trials."""
    for _ in range(running):
        slots.study.ask()
    times = []
    for _ in range(repeats):
        begun = time.monotonic()
        _one(slots, storage)
        times.append(time.monotonic() - begun)
    return sorted(times)[repeats // 2]


# ---- simulated workers


class Cost(NamedTuple):
    """What a trial costs the database.

    Attributes:
      fixed: seconds of the database for a trial.
      running: further seconds for each other running trial: taking a trial reads them all.
      servers: how many trials the database serves at the same time.
    """

    fixed: float
    running: float
    servers: int


def costs(measured: dict[str, Any]) -> Cost:
    """The cost of a trial, from rates of real workers."""
    first = measured["rates"][0]
    best = max(rate["trials_per_second"] for rate in measured["rates"])
    few, *_, many = measured["taking"]
    per_running = (many["seconds"] - few["seconds"]) / max(1, many["running"] - few["running"])
    servers = max(1, round(best / first["trials_per_second"]))
    return Cost(servers / best, max(0.0, per_running), servers)


class Simulated(NamedTuple):
    """What a simulated sweep reaches.

    Attributes:
      efficiency: share of the workers' time that trials take; the rest is waiting for the database.
      busy: share of the time that the database works.
      trials_per_hour: finished trials of all workers.
    """

    efficiency: float
    busy: float
    trials_per_hour: float


def simulate(workers: int, seconds: float, cost: Cost, trials: int = 20_000) -> Simulated:
    """Simulate workers that take turns between a trial and the database.

    The length of a trial is exponentially distributed, so that workers that start together spread.
    The database serves whoever comes first; how long depends on the number of running trials.

    Args:
      workers: number of workers.
      seconds: mean seconds of a trial.
      cost: what a trial costs the database.
      trials: trials to simulate.

    Examples:
      >>> simulate(1, 99.0, Cost(fixed=1.0, running=0.0, servers=1)).efficiency > 0.9
      True
    """
    draw = random.Random(0)
    arrivals = [(draw.uniform(0, seconds), worker) for worker in range(workers)]
    heapq.heapify(arrivals)
    free = [0.0] * cost.servers
    service = cost.fixed + cost.running * (workers - 1)
    computed = end = 0.0
    for _ in range(trials):
        now, worker = heapq.heappop(arrivals)
        begun = max(now, heapq.heappop(free))
        heapq.heappush(free, begun + service)
        length = draw.expovariate(1 / seconds)
        computed += length
        end = max(end, begun + service)
        heapq.heappush(arrivals, (begun + service + length, worker))
    # What is still being computed at the end has been counted, and so must its time be.
    total = sum(time for time, _ in arrivals)
    busy = trials * service / (cost.servers * end)
    return Simulated(computed / total, min(1.0, busy), 3600 * trials / (total / workers))


def lines(record: dict[str, Any], simulated: Sequence[dict[str, Any]]) -> list[str]:
    """The results as text."""
    shown = [
        f"{rate['workers']} workers: {rate['trials_per_second']:.1f} trials/s,"
        f" {rate['trials_per_second'] * rate['writes']:.0f} writes/s"
        f" ({rate['writes']:.0f} a trial)"
        for rate in record["rates"]
    ]
    shown += [
        f"a trial beside {one['running']} running ones: {1000 * one['seconds']:.0f} ms"
        for one in record["taking"]
    ]
    shown += [
        f"{one['workers']} workers, {one['minutes']:g} min a trial:"
        f" {one['trials_per_hour']:.0f} trials/h, efficiency {100 * one['efficiency']:.1f}%,"
        f" database busy {100 * one['busy']:.1f}%"
        for one in simulated
    ]
    return shown


if __name__ == "__main__":
    main()
