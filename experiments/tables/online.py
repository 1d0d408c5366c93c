"""Tables S8 and S9: online learning on a switching stream."""

import dataclasses
from typing import TYPE_CHECKING, Any

from experiments import online, published
from experiments.report import with_std
from experiments.tables.markdown import Lines, comparison, header, row, seeds
from experiments.tables.runner import Runner
from jaxsparse.training.online.result import over_seeds

if TYPE_CHECKING:
    from experiments.published import Published
    from experiments.reproduce import Flags
    from jaxsparse.training.online import OnlineConfig

_PUBLISHED_TIMESTEPS = 10_000
_ACCURACIES = ("total", "omniglot", "mnist", "fashion_mnist")
S8_METHODS = (
    *("online-adam", "fine-tuning", "maml", "anil", "bgd", "metacog", "metabgd"),
    *("cmaml", "cmaml-fixed", "sparse-cmaml", "sparse-relu-cmaml"),
)
S9_METHODS = ("cmaml", "cmaml-fixed", "sparse-cmaml", "sparse-relu-cmaml")
# Settings beside the presets. Of C-MAML Table S9 names another first rate than OSAKA's public code,
# which the preset has: both are shown.
_READINGS: dict[str, tuple[dict[str, Any], ...]] = {"cmaml": ({}, {"inner_lr": 0.1})}


def accuracies(flags: "Flags", runner: Runner) -> Lines:
    """Table S8: the online accuracy of every method, in total and by data set."""
    lines = [_heading(flags), ""]
    for p in flags.p:
        lines += [f"**p = {p:g}**", ""]
        lines += header("method", *_ACCURACIES, "detected", "false alarms", "sparsity")
        results = {}
        for method, config, result in _runs(flags, runner, p, flags.methods or S8_METHODS):
            label = method
            if method in _READINGS:
                label += f", alpha_0 {config.inner_lr:g}"
            if result is not None:
                results[label] = result
            for print_, paper in published.TABLE_S8.get((method, p), {"": {}}).items():
                cells = [_cell(_accuracy(result, n), paper.get(n)) for n in _ACCURACIES]
                name = f"{label}{print_ and f' ({print_})'}"
                lines.append(row(name, *cells, *_detected(result), _sparsity(result)))
        lines += ["", *_comparisons(results), ""]
    return lines


def settings(flags: "Flags", runner: Runner) -> Lines:
    """Table S9: the online accuracy of C-MAML's kin, with their rates."""
    lines = [_heading(flags), ""]
    lines += header("p", "method", "accuracy", "alpha_0", "gamma_m", "the paper's rates")
    for p in flags.p:
        for method, config, result in _runs(flags, runner, p, flags.methods or S9_METHODS):
            paper, rates = published.TABLE_S9.get((method, p), (None, "-"))
            gated = method in ("cmaml-fixed", "cmaml", "sparse-cmaml")
            learned = method != "cmaml-fixed"
            lines.append(row(
                f"{p:g}", method, _cell(_accuracy(result, "total"), paper),
                f"{config.inner_lr:g}" if gated else "-",
                f"{config.mask_lr:g}" if learned else "-", rates,
            ))  # fmt: skip
    return lines


def cell_config(flags: "Flags", p: float, method: str, **own: Any) -> "OnlineConfig":
    """The published settings of a method at p, with the flags' seeds and timesteps."""
    from experiments.online_presets import preset_config

    own = {"seeds": flags.seeds, "timesteps": flags.timesteps, "data_dir": flags.data_dir, **own}
    return dataclasses.replace(preset_config(p, method), **own)


def _runs(flags, runner, p, methods):
    """Method, configuration and result of each row; None for what of a method is not there.

    A method of which no run is there has no row.
    """
    for method in methods:
        readings = _READINGS.get(method, ({},))
        results = [_result(flags, runner, p, method, own) for own in readings]
        if any(result is not None for result in results):
            for own, result in zip(readings, results, strict=True):
                yield method, cell_config(flags, p, method, **own), result


def _result(flags, runner, p, method, own) -> dict[str, Any] | None:
    name = "-".join([f"p{p:g}-{method}", *(f"{n}-{value:g}" for n, value in own.items())])
    if flags.timesteps != _PUBLISHED_TIMESTEPS:
        name += f"-{flags.timesteps}"
    result = runner.result(online.experiment(), name, cell_config(flags, p, method, **own))
    # Older runs have stored another standard deviation.
    return None if result is None else {**result, **over_seeds(result["seeds"])}


def _heading(flags):
    heading = (
        f"Online accuracy in %, ours ({seeds(flags.seeds)}) / the paper's. Our std has N - 1; the"
        " paper's, in the rows it takes from OSAKA (all but the sparse ones and cmaml-fixed), is"
        " that of OSAKA's code, of the population (N)."
    )
    if flags.timesteps == _PUBLISHED_TIMESTEPS:
        return heading
    return (
        f"{heading} Ours are of the first {flags.timesteps:,} timesteps, the paper's of"
        f" {_PUBLISHED_TIMESTEPS:,}: they are no comparison, which is between the methods."
    )


def _accuracy(result, name):
    if result is None:
        return None
    return result["accuracy"] if name == "total" else result["by_dataset"].get(name)


def _cell(ours: dict[str, Any] | None, paper: "Published | None") -> str:
    cell = "-" if ours is None else with_std(ours)
    return cell if paper is None else f"{cell} / {paper.mean:g} +- {paper.std:g}"


def _detected(result):
    found = [] if result is None else [seed.get("detections") for seed in result["seeds"]]
    if not found or None in found:
        return "-", "-"
    hits, switches, alarms = (
        sum(one[name] for one in found) for name in ("hits", "switches", "false_alarms")
    )
    return f"{hits:g} of {switches:g}", f"{alarms:g}"


def _sparsity(result):
    total = None if result is None else result["sparsity"].get("total")
    return with_std(total) if total else "-"


def _comparisons(results):
    """How sparse-C-MAML stands to the others on the same streams."""
    ours = results.get("sparse-cmaml")
    return [
        comparison(f"sparse-cmaml is {{}} {other}", "accuracy", ours["seeds"], result["seeds"])
        for other, result in results.items()
        if ours is not None and other != "sparse-cmaml"
    ]
