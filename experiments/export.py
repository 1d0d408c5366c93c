"""Write what a finished few-shot run has learned to one file.

python -m experiments.export runs/fewshot/NAME --out NAME.safetensors
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments import cli, runs
from experiments.evaluate import image_format
from jaxsparse.training import RunError
from jaxsparse.training.errors import trusting
from jaxsparse.training.fewshot.tested import Finished, finished, load_tested
from jaxsparse.training.fewshot.weights import SUFFIX, Weights, named_weights, write_weights

PROG = "python -m experiments.export"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Write what a finished few-shot run has learned to one file: theta, m, settings and result.

    `experiments.evaluate`, `experiments.predict` and `jaxsparse.load_learner` read it.
    """

    run: tyro.conf.Positional[Path]
    """folder of the run, or a file of weights"""
    out: Path
    """new file, NAME.safetensors"""
    seed: int | None = None
    """which of the run's seeds; default: the first"""


_DEFAULTS: Any = Flags(tyro.MISSING, tyro.MISSING)


def main(args: Sequence[str] | None = None) -> None:
    """Read the flags and write the file."""
    with cli.command():
        flags = cli.parse(Flags, list(sys.argv[1:] if args is None else args), _DEFAULTS, PROG)
        run, out = finished(runs.user_path("RUN", flags.run)), _new_file(flags.out)
        cli.start_backend()
        with trusting(run.path):
            weights = exported(run, flags.seed)
            accuracy = f"{100 * weights.result['seeds'][0]['accuracy']:.2f}"
        write_weights(out, weights)
        size = out.stat().st_size / 1000
        cli.say(f"weights: {out}, {size:.0f} kB, test accuracy {accuracy}")


def _new_file(path: Path) -> Path:
    if path.suffix != SUFFIX:
        raise RunError(f"--out: want a file name that ends with {SUFFIX}, got {path}")
    return runs.new_path("--out", path)


def exported(run: Finished, seed: int | None = None) -> Weights:
    """One seed of a run, as if it had run alone, with blocks that run on every machine.

    Args:
      run: a finished run.
      seed: one of its seeds; None: the first.

    Raises:
      RunError: the run has no such seed, or its last checkpoint cannot be read.
    """
    images, place = image_format(run), run.place_of(seed)
    theta, mask = load_tested(run, tuple(images["shape"])).members[0]
    theta, mask = jax.tree.map(lambda x: np.asarray(x[place]), (theta, mask))
    settings = dataclasses.asdict(run.config) | {
        **{"seed": run.config.seed + place, "seeds": 1, "ensemble": 1, "blocks": "auto"},
        **{"data_dir": None, "theta_from": None},  # folders of another machine
    }
    record = {**run.record, "config": settings, "images": images}
    own, whole = _without_ensemble(run.result["seeds"][place]), _without_ensemble(run.result)
    result = {
        **whole, "accuracy": own["accuracy"], "accuracy_std_over_seeds": None,
        "interval95_over_tasks": own["interval95"], "seeds": [own],
    }  # fmt: skip
    return Weights(record, result, named_weights(theta, mask))


def _without_ensemble(measures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in measures.items() if not name.startswith("ensemble")}


if __name__ == "__main__":
    main()
