"""Does a GPU compute what the CPU computes? One step of each method on both, and a resumed run.

python -m benchmarks.gpu_checks
python -m benchmarks.gpu_checks --platform cpu --tiny
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks import machine
from benchmarks.command import RESULTS, one_line_ends, say
from experiments import cli

PROG = "python -m benchmarks.gpu_checks"
RESULT, TABLE = "checks.json", "checks.md"
RESUME = "stopped and resumed"  # the check of a run
# Of the relative L2 difference of changes, as in benchmarks/harness.py: rounding flips ReLUs and
# maxima, and later inner steps amplify that.
LIMIT = 0.1
COLUMNS = ("check", "array", "largest difference", "relative L2", "limit", "")
LEGEND = (
    "Every step starts from the same arrays on both devices, in float32. largest difference,"
    " relative L2: of the change of the named part of the state, or of the metric, between the two"
    " devices.",
    "On both sides, the convolutions are XLA's. On the device all tasks of a batch are adapted to"
    " in parallel, on the CPU one after the other.",
    "run twice: how far two equal runs are apart; on a GPU, sums may be added in another order.",
)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compare a step of each method on a GPU with the same step on the CPU; stop and resume a run.

    Each result is written as soon as it is known. The exit status is 1 if a difference is above its
    limit.
    """

    platform: Literal["gpu", "cpu"] = "gpu"
    """cpu compares the CPU with itself, to try the command without a GPU"""
    tiny: bool = False
    """small networks and images"""
    checks: tuple[str, ...] = ()
    """names, or beginnings of names, of the checks; default: all"""
    out: Path | None = None
    """folder of the results; default: the device's folder under benchmarks/results"""


class Check(NamedTuple):
    """A program whose results are compared.

    Attributes:
      name: for the table.
      make: `task_loop -> cases.Made`. Of its arguments, the first is a state; the function returns
        the new state first, and metrics last.
    """

    name: str
    make: Callable[[Any], Any]


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, check, report."""
    flags = cli.parse(Flags, sys.argv[1:] if args is None else args, Flags(), PROG)
    import jax

    if flags.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    cli.start_backend()
    if flags.platform == "gpu" and jax.default_backend() != "gpu":
        cli.fail("JAX sees no GPU; for a GPU it needs pip install -e '.[cuda]'")
    known = {RESUME: None, **{check.name: check for check in all_checks(flags.tiny)}}
    wanted = [n for n in known if not flags.checks or n.startswith(flags.checks)]
    if missing := [name for name in flags.checks if not any(n.startswith(name) for n in known)]:
        cli.fail(f"--checks {missing[0]}: the checks are {', '.join(known)}")
    with one_line_ends():
        rows = _run(flags, {name: known[name] for name in wanted})
    if failed := sorted({row["check"] for row in rows if not row["ok"]}):
        cli.fail(f"the devices differ in: {', '.join(failed)}", status=1)


def _run(flags: Flags, checks: Mapping[str, Check | None]) -> list[dict[str, Any]]:
    from benchmarks import report

    cli.use_compilation_cache()
    about = machine.describe(flags.platform)
    out = flags.out or RESULTS / machine.slug(about)
    report.prepare(out)
    rows: list[dict[str, Any]] = []
    for name, check in checks.items():
        begun = time.perf_counter()
        rows += resumed(flags.tiny) if check is None else list(compared(check))
        say(f"{name}: {time.perf_counter() - begun:.0f} s")
        results = {"machine": about, "tiny": flags.tiny, "rows": rows}
        report.publish(out, {RESULT: report.to_json(results), TABLE: markdown(results)})
    report.show([section(rows)], LEGEND)
    print(f"results: {out}")
    return rows


# ---- steps on both devices


def compared(check: Check) -> Iterator[dict[str, Any]]:
    """The rows of a check: each part of the state that changes, and each metric."""
    import jax

    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    made, reference = check.make("vmap"), check.make("scan")
    with jax.default_device(cpu):
        args = jax.jit(made.draw)(jax.random.key(0))
    wanted = outcome(args[0], *_computed(reference.function, args, cpu))
    got = outcome(args[0], *_computed(made.function, args, device))
    for name, want in wanted.items():
        yield row(check.name, name, got[name], want)


def _computed(function: Callable, args: Any, device: Any) -> tuple[Any, Any]:
    """The new state and the metrics, computed on a device."""
    import jax
    import jax.numpy as jnp

    # Copies: some programs take over the memory of their arguments.
    args = jax.tree.map(jnp.copy, jax.device_put(args, device))
    with jax.default_device(device):
        state, *_, metrics = jax.jit(function)(*args)
    return state, metrics


def outcome(before: Any, after: Any, metrics: Any) -> dict[str, list[Any]]:
    """The change of each part of a state that changes, and the metrics, as lists of arrays."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    found = {}
    for name in before._fields:
        old, new = (jax.tree.leaves(getattr(state, name)) for state in (before, after))
        change = [
            np.asarray(y) - np.asarray(x)
            for x, y in zip(old, new, strict=True)
            if jnp.issubdtype(x.dtype, np.floating)
        ]
        if any(map(np.any, change)):
            found[f"change of {name}"] = change
    return found | {name: [np.asarray(x)] for name, x in metrics.items() if np.size(x)}


def row(check: str, what: str, got: list[Any], want: list[Any], limit: float | None = LIMIT) -> Any:
    """The differences of arrays, and whether they are within the limit."""
    import numpy as np

    ours, theirs = (np.concatenate([np.ravel(x) for x in xs]).astype(float) for xs in (got, want))
    size = float(np.linalg.norm(theirs))
    relative = float(np.linalg.norm(ours - theirs)) / (size or 1.0)
    return {
        "check": check,
        "array": what,
        "largest": float(np.abs(ours - theirs).max()),
        "relative": relative,
        "limit": limit,
        "ok": limit is None or relative <= limit,  # NaN is above every limit
    }


def resumed(tiny: bool) -> list[dict[str, Any]]:
    """The rows of a run that is stopped and resumed, and of one that is run twice."""
    from benchmarks.gpu_resume import runs

    once, *others = (found := runs(tiny)).values()
    limits = {"run twice": None, RESUME: LIMIT}
    return [
        row(other, what, got[what], want, limits[other])
        for other, got in zip(list(found)[1:], others, strict=True)
        for what, want in once.items()
    ]


# ---- the checks


def all_checks(tiny: bool) -> list[Check]:
    """Every comparison of a step, the most valuable first; small ones if `tiny`."""
    from jaxsparse.training.fewshot.config import Method

    first, *others = Method.__args__  # type: ignore[attr-defined]
    others.sort(key=lambda method: method == "maml")  # it takes longest to compile
    return [
        Check(f"few-shot {first}", few_shot(first, tiny)),
        *(Check(f"continual {method}", continual(method, tiny)) for method in _CONTINUAL),
        *(Check(f"online {method}", online(method, tiny)) for method in _ONLINE),
        *(Check(f"few-shot {method}", few_shot(method, tiny)) for method in others),
    ]


_CONTINUAL = ("sparse-lamaml", "lamaml")
_ONLINE = ("sparse-cmaml", "cmaml")


def few_shot(method: str, tiny: bool) -> Callable[[Any], Any]:
    """A meta-step by SGD with rate 1, so that the changes are the meta-gradients."""
    import jax
    import optax

    import jaxsparse
    from benchmarks.gpu_program import cases
    from experiments.fewshot.presets import preset_config
    from jaxsparse.training import make_learner

    # At a small inner rate, inner steps amplify rounding less.
    changes: dict[str, Any] = {"method": method, "inner_lr": 0.001, "meta_batch_size": 2}
    if tiny:
        changes |= {"width": 4, "query_shots": 2, "embedding": 10, "inner_steps": 2}
    config = preset_config("omniglot", "omniglot", method, 1 if tiny else 5)
    config = dataclasses.replace(config, blocks="pallas", **changes)
    image = (16, 16, 1) if tiny else cases.OMNIGLOT
    parts, sgd = make_learner(config, image), optax.sgd(1.0)

    def make(task_loop: Any) -> Any:
        learner = jaxsparse.maml(
            parts.loss_fn, parts.gate, inner_steps=config.inner_steps, theta_optimizer=sgd,
            mask_optimizer=sgd, second_order=config.second_order or method == "maml",
            task_loop=task_loop,
        )  # fmt: skip

        def draw(key: jax.Array) -> tuple[Any, ...]:
            tasks = cases.draw_tasks(config, image, config.meta_batch_size, key)
            return learner.init(parts.model.init(key), key), tasks

        return cases.Made(lambda state, tasks: learner.step(state, tasks, None), draw)

    return make


def continual(method: str, tiny: bool) -> Callable[[Any], Any]:
    """A glance at a batch."""
    from benchmarks.gpu_program import cases
    from experiments.continual.presets import preset_config

    changes: dict[str, Any] = {"method": method, **({"width": 8, "memories": 20} if tiny else {})}
    config = dataclasses.replace(preset_config("rotations", method), glances=1, **changes)
    return lambda _: cases.glance(config, cases.OMNIGLOT, seeds=1)


def online(method: str, tiny: bool) -> Callable[[Any], Any]:
    """Three timesteps of C-MAML; at the third, two batches are stored, and theta is updated."""
    import jax
    import jax.numpy as jnp

    from benchmarks.gpu_program import cases
    from experiments.online.presets import preset_config

    # SGD: by Adam, entries whose gradient is only rounding would change as much as the others.
    changes: dict[str, Any] = {"method": method, "inner_lr": 0.01, "outer_optimizer": "sgd"}
    if tiny:
        changes |= {"width": 2, "shots": 1, "inner_steps": 2}
    config = preset_config(0.98, method)
    config = dataclasses.replace(config, blocks="pallas", capacity=2, **changes)
    made = cases.timestep(config)

    def timesteps(state: Any, batch: Any, key: jax.Array, number: jax.Array) -> Any:
        images, labels = batch

        def take(state: Any, index: jax.Array) -> Any:
            # Other labels each time, or there would be little to learn.
            switched = images, (labels + index) % config.ways
            own = jax.random.fold_in(key, index)
            return made.function(state, switched, own, number + index)

        return jax.lax.scan(take, state, jnp.arange(3))

    return lambda _: made._replace(function=timesteps)


# ---- the table


def section(rows: Sequence[Mapping[str, Any]]) -> Any:
    """All rows as one table."""
    from benchmarks.report import Section

    cells = [
        [
            row["check"],
            row["array"],
            f"{row['largest']:.1e}",
            f"{row['relative']:.1e}",
            "-" if row["limit"] is None else f"{row['limit']:.0e}",
            "ok" if row["ok"] else "DIFFERS",
        ]
        for row in rows
    ]
    return Section("Differences to the CPU", COLUMNS, cells)


def markdown(results: Mapping[str, Any]) -> str:
    """The table as a document."""
    from benchmarks import report

    about = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    line = f"{about['device']}; {versions}; {about['date']}"
    title = "A step of each method on this device and on the CPU"
    return report.document(title, line, [section(results["rows"])], after=LEGEND)


if __name__ == "__main__":
    main()
