"""Online learning on a switching stream in jaxsparse and in PyTorch, in the same run.

python -m benchmarks.online
python -m benchmarks.online --method cmaml --stored 100
"""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import harness
from benchmarks.command import check_least, compare_on_cpu, one_line_ends, say, want_torch
from benchmarks.families import Trees
from experiments import cli
from jaxsparse.machine import cores

PROG = "python -m benchmarks.online"
METHODS = ("sparse-cmaml", "cmaml")
P = 0.98  # the presets'
KINDS = ("timestep", "update")

# Limits of relative L2 differences. Rounding flips some ReLUs and maxima, and float32 runs diverge:
# after 16 steps, gradients differ by tens of percent. Two PyTorch runs differ as much if one weight
# differs in its last digit. So the arithmetic is checked on a few steps of a narrow network. For
# each quantity, the smallest difference over several starts counts: a flip occurs at some starts,
# an error at all of them. What is timed is checked with rough limits only.
LIMIT = 1e-4
CHECKED = {"width": 16, "inner_steps": 2, "capacity": 5}  # odd capacity: one batch has no pair
STARTS = 24  # most have a flip; the search ends at the first start without one
ROUGH_LIMITS = {"loss": 1e-4, "phi": 0.1}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time timesteps of a stream of 10-way batches, without and with an update of theta.

    A timestep predicts its batch, adapts to it and computes the loss again. Once enough batches are
    stored, a timestep also updates theta and the mask. The images are noise, which does not affect
    the timing. Switches are not detected.
    """

    method: Literal["sparse-cmaml", "cmaml"] | None = None
    """the method; default: both in turn"""
    width: int = 64
    """channels of Conv4's layers"""
    inner_steps: int = 16
    """K"""
    stored: int = 20
    """stored batches for an update of theta, used in pairs"""
    timesteps: int = 2
    """timesteps timed together, without an update of theta; at most --stored"""
    seeds: int | None = None
    """streams that jaxsparse learns in parallel; default: one for each core"""
    repeats: int = 3
    """rounds, jaxsparse and PyTorch in turn; medians are reported"""
    threads: int | None = None
    """PyTorch's threads; default: one for each core or a single one, whichever is faster"""
    out: Path | None = None
    """folder of the results; default: the machine's folder under benchmarks/results"""


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, measure, report."""
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
    """The numbers of the requested methods."""
    methods = [flags.method] if flags.method else METHODS
    return {
        "threads": choose_threads(flags, methods[0]),
        "methods": [compare(method, flags) for method in methods],
    }


def choose_threads(flags: Flags, method: str) -> int:
    """Set PyTorch's number of threads to the one with the fastest timestep."""
    from benchmarks.ours_online import draw
    from benchmarks.torch_base import fastest_threads

    say("choosing PyTorch's number of threads")
    config = make_config(method, flags)
    peers = make_peers(config, draw(config))
    counts = [flags.threads] if flags.threads else [cores(), 1]
    return fastest_threads(counts, lambda: [run_timesteps(peer, 0, 1) for peer in peers])


def compare(method: str, flags: Flags) -> dict[str, Any]:
    """Check that all forms of a method do the same arithmetic, then time them in turn.

    Returns:
      The configuration, a row for each form, and the relative L2 differences to jaxsparse: "narrow"
      for a few steps of a narrow network, "timed" for what is timed, with amplified rounding.

    Raises:
      Mismatch: a difference is above its limit.
    """
    from benchmarks.ours_online import Ours, Seeds, draw

    config = make_config(method, flags)
    small = narrowed(config)
    starts = [draw(config, seed) for seed in range(flags.seeds or cores())]
    # Compiled without optimisation, as it runs only briefly.
    narrow = Ours(small, [draw(small)], {"xla_backend_optimization_level": 0})
    ours = [Ours(config, starts[:1]), Seeds(config, starts)]
    say(f"{method}: compiling")
    with ThreadPoolExecutor(cores()) as pool:  # each compilation keeps one core busy
        list(pool.map(lambda learner: learner.compile(), [narrow, *ours]))
    say(f"{method}: comparing a few steps")
    errors = {"narrow": check_narrow(narrow)}
    learners = [*ours, *make_peers(config, starts[0])]
    errors["timed"] = check_timed(learners)
    say(f"{method}: timing {flags.repeats} rounds")
    return {
        "method": method,
        "config": dataclasses.asdict(config),
        "errors": errors,
        "rows": timed_rows(learners, flags),
    }


def run_timesteps(learner: Any, stored: int, timesteps: int) -> dict[str, list[float]]:
    """Learn some timesteps, with this many batches stored before; returns their losses."""
    learner.fill(stored)
    return learner.learn(timesteps)


# ---- do the forms agree?


def check_narrow(ours: Any, starts: int = STARTS) -> dict[str, dict[str, float]]:
    """Differences of PyTorch's forms to ours, each the smallest over several starts.

    A difference above `LIMIT` at every start is a `Mismatch`.
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


def check_timed(learners: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Differences of all other forms to the first, in the sizes that are timed.

    A difference above its limit in `ROUGH_LIMITS` is a `Mismatch`.
    """
    first, *others = learners
    wanted, errors = first_timestep(first), {}
    for other in others:
        errors[other.name] = harness.relative_errors(first_timestep(other), wanted)
        _require(other.name, first.config, errors[other.name], ROUGH_LIMITS)
    return errors


def _require(
    form: str, config: Any, errors: Mapping[str, float], limits: Mapping[str, float]
) -> None:
    for what, limit in limits.items():
        line = f"{config.method}'s {what} differs at K = {config.inner_steps}"
        harness.require(form, line, errors[what], limit)


def first_timestep(learner: Any) -> Trees:
    """The losses of one timestep, and phi after it."""
    losses = {name: {"": np.array(values)} for name, values in run_timesteps(learner, 0, 1).items()}
    return {**losses, "phi": learner.phi_now()}


def outcome(learner: Any, start: Any) -> Trees:
    """The compared quantities: of one timestep, and of an update from all batches."""
    from benchmarks.ours_base import flat

    found, begin = first_timestep(learner), flat(start.fast)
    found["change of phi"] = {name: x - begin[name] for name, x in found["phi"].items()}
    run_timesteps(learner, learner.config.capacity, 1)
    return found | {f"gradient of {tree}": x for tree, x in learner.gradients().items()}


def make_config(method: str, flags: Flags) -> Any:
    """The preset of a method in the sizes of the flags."""
    from experiments.online.presets import preset_config

    return dataclasses.replace(
        preset_config(P, method),
        width=flags.width,
        inner_steps=flags.inner_steps,
        capacity=flags.stored,
        detection_threshold=None,
    )


def narrowed(config: Any) -> Any:
    """The configuration, reduced to the sizes in `CHECKED`."""
    sizes = {name: min(getattr(config, name), most) for name, most in CHECKED.items()}
    return dataclasses.replace(config, **sizes)


def make_peers(config: Any, start: Any) -> list[Any]:
    """PyTorch's forms with the same start."""
    from benchmarks.ours_base import flat
    from benchmarks.torch_online import FORMS

    params, fast, mask = (flat(tree) for tree in (start.params, start.fast, start.mask))
    images, labels = (np.asarray(x) for x in start.batches)
    return [form(config, params, fast, mask, (images, labels)) for form in FORMS]


# ---- time


def timed_rows(learners: Sequence[Any], flags: Flags) -> list[dict[str, Any]]:
    """Time rounds of all forms in turn: seconds, rates and ratios to PyTorch's forms."""
    counts = {"timestep": (0, flags.timesteps), "update": (flags.stored, 1)}
    rounds = {
        (learner.name, kind): functools.partial(run_timesteps, learner, *counts[kind])
        for learner in learners
        for kind in KINDS
    }
    seconds = harness.timed(rounds, flags.repeats, warm_up=False)  # the checks have warmed them up
    for learner in learners:
        harness.require_finite(learner.name, {"phi": learner.phi_now()})
    rows = [_figures(learner, seconds, flags.timesteps) for learner in learners]
    peers = [row for row in rows if not row["form"].startswith("jaxsparse")]
    for row in rows:
        row["ratio"] = {
            peer["form"]: {kind: row["per_s"][kind] / peer["per_s"][kind] for kind in KINDS}
            for peer in peers
        }
    return rows


def _figures(learner: Any, seconds: Mapping[Any, list[float]], timesteps: int) -> dict[str, Any]:
    """Seconds of the rounds; timesteps and updates per second, over all streams."""
    rounds = {kind: seconds[learner.name, kind] for kind in KINDS}
    done = {"timestep": learner.streams * timesteps, "update": learner.streams}
    return {
        "form": learner.name,
        "streams": learner.streams,
        "seconds": rounds,
        "per_s": {kind: done[kind] / statistics.median(rounds[kind]) for kind in KINDS},
    }


# ---- the table


def markdown(results: dict[str, Any]) -> str:
    """The table of the results and its legend."""
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
    "timesteps/s: timesteps per second of all streams together, from the median of the rounds, all"
    " forms in turn. A timestep is the prediction of a batch, K inner steps, and the loss after"
    " them, without an update of theta. Compilation is not included.",
    "updates/s: the same for timesteps that also update theta and the mask from {stored} stored"
    " batches in pairs: K inner steps and a first-order gradient for each pair, one step of Adam.",
    "to loop, to channels_last: the ratio of these numbers to PyTorch's; above 1, jaxsparse is"
    " faster.",
    "jaxsparse: one call of cmaml_step for each timestep, with all cores for each operation. Seeds:"
    " parallel streams in one program, as experiments.online runs them.",
    "PyTorch: one stream, benchmarks/torch_online.py, threads: {threads}. With one thread, each"
    " other core could learn another stream in a separate process.",
)


def _row(row: dict[str, Any]) -> list[str]:
    cells = [f"PyTorch, {row['form']}" if row["form"] in row["ratio"] else row["form"]]
    for kind in KINDS:
        ratios = (f"{of[kind]:.2f}" for of in row["ratio"].values())
        cells += [f"{row['per_s'][kind]:.3g}", *ratios]
    return cells


def _differences(errors: dict[str, dict[str, dict[str, float]]]) -> str:
    """The largest difference of each quantity over the forms."""
    largest = {
        part: ", ".join(f"{what} {max(e[what] for e in forms.values()):.0e}" for what in found)
        for part, forms in errors.items()
        for found in list(forms.values())[:1]
    }
    return (
        f"Largest relative L2 differences to the first row: after a few steps of a narrow network"
        f" {largest['narrow']}; in the sizes of this table {largest['timed']}."
    )


if __name__ == "__main__":
    main()
