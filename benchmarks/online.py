"""Online learning on a switching stream against PyTorch code of C-MAML's kind, in the same run.

python -m benchmarks.online
python -m benchmarks.online --method cmaml --stored 100
"""

import dataclasses
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.command import check_least, compare_on_cpu, one_line_ends, say, want_torch
from benchmarks.families import Trees
from experiments import cli
from jaxsparse.machine import cores

PROG = "python -m benchmarks.online"
METHODS = ("sparse-cmaml", "cmaml")
P = 0.98  # of the presets
KINDS = ("timestep", "update")

# Relative L2 differences. Rounding tips a ReLU or a max here and there, and then float32 runs part:
# after 16 steps gradients by tens of percent, as PyTorch's own do when a weight's last digit
# changes. So the arithmetic is judged on few steps of a narrow network, each quantity at the best
# of several starts: a tie is tipped at some of them, an error shows at all. What is timed is judged
# roughly.
LIMIT = 1e-4
CHECKED = {"width": 16, "inner_steps": 2, "capacity": 5}  # an odd number: one batch has no partner
STARTS = 24  # few have no such tie; the first of them ends the search
ROUGH_LIMITS = {"loss": 1e-4, "phi": 0.1}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time timesteps of a stream of 10-way batches, and those with an update of theta.

    A timestep predicts its batch, adapts to it and takes the loss anew. Once enough batches are
    stored, theta and the mask are updated in it, too. The images are noise: no time depends on
    what they show, and no switch is detected.
    """

    method: Literal["sparse-cmaml", "cmaml"] | None = None
    """who learns; default: both in turn"""
    width: int = 64
    """channels of Conv4's layers"""
    inner_steps: int = 16
    """K"""
    stored: int = 20
    """batches that theta is updated from, in pairs"""
    timesteps: int = 2
    """timed in one go where theta stays; at most as many as are stored"""
    seeds: int | None = None
    """streams that jaxsparse learns side by side; default: one for each core"""
    repeats: int = 3
    """rounds, jaxsparse and PyTorch in turn; medians are reported"""
    threads: int | None = None
    """of PyTorch; default: one for each core or a single one, whichever is faster"""
    out: Path | None = None
    """folder of the results; default: one per machine under benchmarks/results"""


class Contest(NamedTuple):
    """Who is compared at a method.

    Attributes:
      config: the configuration.
      ours: jaxsparse's forms; the others' numbers are compared with those of the first.
      peers: PyTorch's forms.
      narrow: jaxsparse in the sizes of `CHECKED`, for the check.
    """

    config: Any
    ours: list[Any]
    peers: list[Any]
    narrow: Any


@dataclasses.dataclass
class Round:
    """What is timed: some timesteps with this many batches stored before the first."""

    learner: Any
    stored: int
    timesteps: int
    warm: bool = False

    def step(self) -> None:
        """One round, the first time a plain timestep to warm up; returns when it is done."""
        stored, timesteps = (self.stored, self.timesteps) if self.warm else (0, 1)
        self.warm = True
        self.learner.fill(stored)
        self.learner.learn(timesteps)


def main(args: Sequence[str] | None = None) -> None:
    """Read the flags, measure, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    counts = ("width", "inner_steps", "stored", "timesteps", "seeds", "repeats", "threads")
    check_least(flags, dict.fromkeys(counts, 1))
    if flags.timesteps > flags.stored:
        cli.fail(f"--timesteps must be at most --stored, {flags.stored}, got {flags.timesteps}")
    want_torch()
    with one_line_ends():
        cli.use_all_cores()
        compare_on_cpu(flags, ("online.json", "online.md"), lambda: measure(flags), markdown)


def measure(flags: Flags) -> dict[str, Any]:
    """The numbers of the methods asked for."""
    contests = [prepare(method, flags) for method in ([flags.method] if flags.method else METHODS)]
    errors = check(contests)
    say("choosing PyTorch's threads")
    threads = choose_threads(flags, [peer for contest in contests for peer in contest.peers])
    return {
        "threads": threads,
        "methods": [
            {
                "method": contest.config.method,
                "config": dataclasses.asdict(contest.config),
                "errors": found,
                "rows": timed_rows(contest, flags),
            }
            for contest, found in zip(contests, errors, strict=True)
        ],
    }


def prepare(method: str, flags: Flags) -> Contest:
    """All forms of a method at their starts, jaxsparse's not yet compiled."""
    from benchmarks.ours_online import Ours, Seeds, draw

    config = make_config(method, flags)
    starts = [draw(config, seed) for seed in range(flags.seeds or cores())]
    small = narrowed(config)
    return Contest(
        config,
        [Ours(config, starts[:1]), Seeds(config, starts)],
        make_peers(config, starts[0]),
        Ours(small, [draw(small)], {"xla_backend_optimization_level": 0}),  # it runs but briefly
    )


def check(contests: Sequence[Contest]) -> list[dict[str, Any]]:
    """Compile, and check that all forms of a method do the same arithmetic.

    Returns:
      For each method the relative L2 differences to jaxsparse: "narrow", of a narrow network after
      a few steps, and "timed", of what is timed, where rounding has gone its way.

    Raises:
      Mismatch: one is larger than its limit.
    """
    say("compiling for the check")
    compile_all(contest.narrow for contest in contests)
    say("few steps compared")
    narrow = [check_narrow(contest.narrow) for contest in contests]
    say("compiling")
    compile_all(ours for contest in contests for ours in contest.ours)
    return [
        {"narrow": found, "timed": check_timed(contest)}
        for found, contest in zip(narrow, contests, strict=True)
    ]


def compile_all(learners: Iterable[Any]) -> None:
    """Compile jaxsparse's programs, at once: each of them keeps one core busy."""
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(lambda learner: learner.compile(), learners))


def check_narrow(ours: Any, starts: int = STARTS) -> dict[str, dict[str, float]]:
    """Differences of PyTorch's forms to ours, the smallest of several starts.

    Raises:
      Mismatch: one is larger than `LIMIT` at every start.
    """
    from benchmarks.ours_online import draw

    smallest: dict[str, dict[str, float]] = {}
    for seed in range(starts):
        start = draw(ours.config, seed)
        ours.begin([start])
        wanted = outcome(ours, start)
        for peer in make_peers(ours.config, start):
            found = harness.relative_errors(outcome(peer, start), wanted)
            best = smallest.setdefault(peer.name, found)
            smallest[peer.name] = {what: min(best[what], found[what]) for what in found}
        if all(error <= LIMIT for best in smallest.values() for error in best.values()):
            break
    for form, errors in smallest.items():
        _require(form, ours.config, errors, dict.fromkeys(errors, LIMIT))
    return smallest


def check_timed(contest: Contest) -> dict[str, dict[str, float]]:
    """Differences of all other forms to the first, in the sizes that are timed.

    Raises:
      Mismatch: one is larger than `ROUGH_LIMITS` has it.
    """

    first, *others = *contest.ours, *contest.peers
    wanted, errors = first_timestep(first), {}
    for other in others:
        errors[other.name] = harness.relative_errors(first_timestep(other), wanted)
        _require(other.name, contest.config, errors[other.name], ROUGH_LIMITS)
    return errors


def _require(
    form: str, config: Any, errors: Mapping[str, float], limits: Mapping[str, float]
) -> None:
    for what, limit in limits.items():
        said = f"at K = {config.inner_steps} {config.method}'s {what} differs"
        harness.require(form, said, errors[what], limit)


def first_timestep(learner: Any) -> Trees:
    """The losses of a timestep from phi, and phi after it."""
    learner.fill(0)
    losses = {name: {"": np.array(values)} for name, values in learner.learn(1).items()}
    return {**losses, "phi": learner.phi_now()}


def outcome(learner: Any, start: Any) -> Trees:
    """What is compared: a timestep from phi, and an update from all batches."""
    from benchmarks.ours_base import flat

    found, begin = first_timestep(learner), flat(start.fast)
    found["change of phi"] = {name: x - begin[name] for name, x in found["phi"].items()}
    learner.fill(learner.config.capacity)
    learner.learn(1)
    return found | {f"gradient of {tree}": x for tree, x in learner.gradients().items()}


def choose_threads(flags: Flags, peers: Sequence[Any]) -> int:
    """Set PyTorch's number of threads to the one at which a timestep of each peer is fastest."""
    from benchmarks.torch_base import fastest_threads

    def timestep_of_each() -> None:
        for peer in peers:
            peer.fill(0)
            peer.learn(1)

    counts = [flags.threads] if flags.threads else [cores(), 1]
    return fastest_threads(counts, timestep_of_each)


def timed_rows(contest: Contest, flags: Flags) -> list[dict[str, Any]]:
    """Rounds of all forms in turn; for each its seconds, rates and ratios to PyTorch's."""
    learners, rounds = [*contest.ours, *contest.peers], {}
    for learner in learners:
        rounds[learner.name, "timestep"] = Round(learner, 0, flags.timesteps).step
        rounds[learner.name, "update"] = Round(learner, flags.stored, 1).step
    say(f"{contest.config.method}: {flags.repeats} rounds")
    seconds = harness.timed(rounds, flags.repeats)
    for learner in learners:
        harness.require_finite(learner.name, {"phi": learner.phi_now()})
    rows = [_figures(learner, seconds, flags.timesteps) for learner in learners]
    for row in rows:
        row["ratio"] = {
            peer["form"]: {kind: row["per_s"][kind] / peer["per_s"][kind] for kind in KINDS}
            for peer in rows[len(contest.ours) :]
        }
    return rows


def _figures(learner: Any, seconds: Mapping[Any, list[float]], timesteps: int) -> dict[str, Any]:
    """Seconds of the rounds, and the timesteps or updates a second of all streams together."""
    own = {kind: seconds[learner.name, kind] for kind in KINDS}
    done = {"timestep": learner.streams * timesteps, "update": learner.streams}
    return {
        "form": learner.name,
        "streams": learner.streams,
        "seconds": own,
        "per_s": {kind: done[kind] / statistics.median(own[kind]) for kind in KINDS},
    }


def make_config(method: str, flags: Flags) -> Any:
    """The preset of a method, in the sizes that the flags ask for."""
    from experiments.online_presets import preset_config

    return dataclasses.replace(
        preset_config(P, method),
        width=flags.width,
        inner_steps=flags.inner_steps,
        capacity=flags.stored,
        detection_threshold=None,
    )


def narrowed(config: Any) -> Any:
    """The configuration in the sizes of `CHECKED`, where it is larger."""
    sizes = {name: min(getattr(config, name), most) for name, most in CHECKED.items()}
    return dataclasses.replace(config, **sizes)


def make_peers(config: Any, start: Any) -> list[Any]:
    """PyTorch's forms, from the same start."""
    from benchmarks.ours_base import flat
    from benchmarks.torch_online import FORMS

    params, fast, mask = (flat(tree) for tree in (start.params, start.fast, start.mask))
    images, labels = (np.asarray(x) for x in start.batches)
    return [form(config, params, fast, mask, (images, labels)) for form in FORMS]


def markdown(results: dict[str, Any]) -> str:
    """The table of what was measured, and what it means."""
    from benchmarks import report

    sections = [_section(entry) for entry in results["methods"]]
    stored, threads = results["flags"]["stored"], results["threads"]
    legend = [line.format(stored=stored, threads=threads) for line in LEGEND]
    title = "Online learning on a switching stream"
    return report.markdown(title, results, sections, after=legend)


def _section(entry: dict[str, Any]) -> Any:
    from benchmarks.report import Section

    config, rows = entry["config"], entry["rows"]
    columns = ["form"]
    for kind in KINDS:
        columns += [f"{kind}s/s", *(f"to {peer}" for peer in rows[0]["ratio"])]
    return Section(
        f"{entry['method']}, Conv4-{config['width']}, batches of {config['ways']} classes x"
        f" {config['shots']} images, K = {config['inner_steps']}",
        columns,
        [_row(row) for row in rows],
        [_differences(entry["errors"])],
    )


LEGEND = (
    "timesteps/s: of all streams together, from medians of the rounds, all forms in turn: the"
    " prediction of a batch, K inner steps, the loss after them; theta stays. Compilation is over"
    " before the clock runs.",
    "updates/s: likewise of timesteps that update theta and the mask, too, from {stored} stored"
    " batches in pairs: K inner steps and a gradient for each pair, first order, one step of Adam.",
    "to loop, to channels_last: the ratio of these numbers to PyTorch's; above 1 is faster.",
    "jaxsparse: one call of cmaml_step for each timestep, operations shared among the cores. Seeds:"
    " streams side by side in one program, as experiments.online runs them.",
    "PyTorch: one stream, benchmarks/torch_online.py, threads: {threads}; with one thread, a"
    " process on each core would learn a stream of its own.",
)


def _row(row: dict[str, Any]) -> list[str]:
    cells = [f"PyTorch, {row['form']}" if row["form"] in row["ratio"] else row["form"]]
    for kind in KINDS:
        ratios = (f"{of[kind]:.2f}" for of in row["ratio"].values())
        cells += [f"{row['per_s'][kind]:.3g}", *ratios]
    return cells


def _differences(errors: dict[str, dict[str, dict[str, float]]]) -> str:
    """The largest difference of each quantity, over the forms."""
    largest = {
        part: ", ".join(f"{what} {max(e[what] for e in forms.values()):.0e}" for what in found)
        for part, forms in errors.items()
        for found in list(forms.values())[:1]
    }
    return (
        f"Relative L2 differences to the first row, at most: after few steps of a narrow network"
        f" {largest['narrow']}; in these sizes {largest['timed']}."
    )


if __name__ == "__main__":
    main()
