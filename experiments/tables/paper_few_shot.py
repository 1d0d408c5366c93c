"""Tables 1 and S1 to S4: few-shot learning, at the paper's scale or a small one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments import fewshot, published
from experiments.published import Published
from experiments.report import with_std
from experiments.tables import scales
from experiments.tables.flags import Flags
from experiments.tables.markdown import Lines, comparison, header, row
from experiments.tables.runner import Runner
from experiments.tables.scales import METHODS, SETTINGS, Setting
from experiments.tables.seeds import of_seeds, sparsity
from jaxsparse.training import Diverged, FewShotConfig
from jaxsparse.training.statistics import mean_and_std

SHOTS = (1, 5)
_CELLS = "in %: ours, mean +- std over n seeds (N - 1)"
_NOT_THE_PAPERS = (
    "Ours are not in the paper's setting: compare the methods with each other, not with the paper."
)
# Variants of Table S3: label and what is varied.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("transductive", {}),
    ("no biases", {"bias": False}),
    ("support", {"batch_norm": "support"}),
    ("running", {"batch_norm": "running"}),
)


class Found(NamedTuple):
    """A finished run: what differs in its label, its name, configuration and result."""

    note: str
    name: str
    config: FewShotConfig
    result: dict[str, Any]


def table_1(flags: Flags, runner: Runner) -> Lines:
    """Table 1: the accuracies of the methods, and those on other domains."""
    lines = [
        *_heading(flags, "Test accuracy of 5-way tasks"),
        "If several inner rates are listed, the one with the highest accuracy on validation tasks"
        " (seed 0) was chosen. FOMAML's published numbers are those of MAML's paper, first order.",
        "",
    ]
    for setting in SETTINGS["table 1", flags.scale]:
        lines += _methods(flags, runner, setting)
    return [*lines, *_other_domains(flags, runner)]


def table_s1(flags: Flags, runner: Runner) -> Lines:
    """Table S1: ResNet-12, with the accuracy of the ensemble of the 3 best epochs."""
    lines = [
        *_heading(flags, "Test accuracy of 5-way tasks and sparsity"),
        "MAML is first order here, like all other rows.",
        "",
    ]
    lines += header("network", "shots", "method", "accuracy", "ensemble of 3", "sparsity")
    for setting, shots, method, found in _runs(flags, runner, "table S1"):
        paper = published.TABLE_S1[found.config.network, shots, method]
        measured = (
            of_seeds(found.result), of_seeds(found.result, "ensemble_accuracy"), _frozen(found)
        )  # fmt: skip
        label = "MAML (first order)" if method == "fomaml" else METHODS[method]
        lines.append(row(setting.label, str(shots), label, *map(cell, measured, paper)))
    return lines


def table_s2(flags: Flags, runner: Runner) -> Lines:
    """Table S2: settings, and the accuracies that come from them."""
    lines = [*_heading(flags, "Settings, test accuracy of 5-way tasks and sparsity"), ""]
    lines += header(
        "data", "shots", "method", "alpha", "K, K in the test", "gamma_theta", "gamma_m",
        "optimiser of m", "meta-steps x tasks", "accuracy", "sparsity",
    )  # fmt: skip
    for setting, shots, method, found in _runs(flags, runner, "table S2"):
        accuracy = cell(of_seeds(found.result), published.TABLE_1.get((method, shots)))
        lines.append(row(
            setting.label, str(shots), METHODS[method], *_settings(found.config),
            accuracy, cell(sparsity(found.result)),
        ))  # fmt: skip
    return lines


def table_s3(flags: Flags, runner: Runner) -> Lines:
    """Table S3: without biases, and with statistics other than those of the query set."""
    (setting,) = SETTINGS["table S3", flags.scale]
    lines = [
        *_heading(flags, "Test accuracy of 5-way 5-shot tasks"),
        "The paper has one row of batch norm that is not transductive. `support` (the statistics of"
        " the support set after the inner loop) and `running` (a running average over the inner"
        " steps) are two readings of it; both are compared with that row.",
        "",
        f"**{setting.label}**",
        "",
        *header("method", "batch norm", "biases", "accuracy", "sparsity"),
    ]
    for method in ("sparse-maml", "fomaml"):
        for variant, varied in VARIANTS:
            found = found_run(runner, *setting.run(flags, 5, method, **varied))
            if found is None:
                continue
            paper = published.TABLE_S3.get((method, variant))
            lines.append(row(
                METHODS[method], found.config.batch_norm, "yes" if found.config.bias else "no",
                cell(of_seeds(found.result), paper), cell(_frozen(found)),
            ))  # fmt: skip
    return lines


def table_s4(flags: Flags, runner: Runner) -> Lines:
    """Table S4: theta from FOMAML, then only the mask is learned."""
    (setting,) = SETTINGS["table S4", flags.scale]
    lines = [
        *_heading(flags, "Test accuracy of 5-way tasks and sparsity"),
        "First theta is learned with FOMAML, then m with theta fixed. The paper's final sparsities"
        " are assigned to its rows in the order in which they are printed.",
        "",
        f"**{setting.label}**",
        "",
        *header("shots", "phase", "initial sparsity", "accuracy", "final sparsity"),
    ]
    for shots in SHOTS:
        first = found_run(runner, *setting.run(flags, shots, "fomaml"))
        if first is None:
            continue
        lines.append(row(str(shots), "theta, FOMAML", "-", cell(of_seeds(first.result)), "-"))
        for initial in (0.0, 0.5):
            found = found_run(runner, *second_phase(flags, runner, shots, initial))
            if found is not None:
                papers = published.TABLE_S4[shots, initial]
                cells = map(cell, (of_seeds(found.result), sparsity(found.result)), papers)
                lines.append(row(str(shots), "m, theta fixed", f"{100 * initial:g}", *cells))
    return lines


def second_phase(
    flags: Flags, runner: Runner, shots: int, initial: float
) -> tuple[str, FewShotConfig]:
    """The name and configuration of a run that learns only m."""
    (setting,) = SETTINGS["table S4", flags.scale]
    first, _ = setting.run(flags, shots, "fomaml")
    name, config = setting.run(
        flags, shots, "sparse-maml", initial_sparsity=initial, theta_lr=0.0,
        theta_from=str((runner.place / first).absolute()),
    )  # fmt: skip
    return f"{name}-theta-fixed", config


def _frozen(found: Found) -> list[float] | None:
    """The sparsity of each seed; None if the method learns no mask."""
    return sparsity(found.result) if "sparse" in found.config.method else None


def cell(ours: list[float] | None, paper: Published | None = None) -> str:
    """Mean and standard deviation over the seeds, their number, and the paper's number."""
    text = "-" if ours is None else f"{with_std(mean_and_std(ours))} (n = {len(ours)})"
    if paper is None:
        return text
    std = "" if paper.std is None else f" +- {paper.std:g}"
    return f"{text} / {paper.mean:g}{std}"


def _heading(flags: Flags, what: str) -> Lines:
    """What the numbers are."""
    lines = [f"{what}, {_CELLS} / the paper's. `--scale {flags.scale}`."]
    return lines if flags.scale == "paper" else [*lines, _NOT_THE_PAPERS]


def found_run(runner: Runner, name: str, config: FewShotConfig, note: str = "") -> Found | None:
    """A run, or None if it does not exist and is not to be run."""
    result = runner.result(fewshot, name, config)
    return None if result is None else Found(note, name, config, result)


def _runs(flags: Flags, runner: Runner, table: str) -> Iterator[tuple[Setting, int, str, Found]]:
    """The runs of a table, with their setting, number of shots and method."""
    for setting in SETTINGS[table, flags.scale]:
        for shots in SHOTS:
            for method in setting.methods:
                found = found_run(runner, *setting.run(flags, shots, method))
                if found is not None:
                    yield setting, shots, method, found


def _methods(flags: Flags, runner: Runner, setting: Setting) -> Lines:
    """The left half of Table 1: the accuracies of a setting's methods."""
    lines = []
    by_shots: dict[int, dict[str, Found]] = {shots: {} for shots in SHOTS}
    for method in setting.methods:
        found = [of_method(flags, runner, setting, shots, method) for shots in SHOTS]
        if not any(found):
            continue
        cells, frozen, notes = [], [], []
        for shots, run in zip(SHOTS, found, strict=True):
            paper = published.TABLE_1.get((method, shots))
            cells.append(cell(run and of_seeds(run.result), paper))
            frozen.append(with_std(mean_and_std(sparsity(run.result))) if run else "-")
            if run:
                by_shots[shots][method] = run
                notes.append(run.note and f"{run.note} for {shots}-shot")
        label = "; ".join([METHODS[method], *filter(None, notes)])
        lines.append(row(label, *cells, ", ".join(frozen) if "sparse" in method else "-"))
    if not lines:
        return []
    head = header("method", "1 shot", "5 shots", "sparsity")
    compared = _comparisons(by_shots)
    return [f"**{setting.label}**", "", *head, *lines, "", *compared, *([""] if compared else [])]


def _comparisons(by_shots: dict[int, dict[str, Found]]) -> Lines:
    """Compare sparse-MAML with each other method, seed by seed."""
    lines = []
    for shots, found in by_shots.items():
        ours = found.get("sparse-maml")
        for method, run in found.items():
            if ours is not None and run is not ours:
                label = f"{shots}-shot: sparse-MAML is {{}} {METHODS[method]}"
                pairs = ours.result["seeds"], run.result["seeds"]
                lines.append(comparison(label, "accuracy", *pairs))
    return lines


def of_method(
    flags: Flags, runner: Runner, setting: Setting, shots: int, method: str
) -> Found | None:
    """The run of a method; of several inner rates, with the best on validation tasks."""
    if method not in setting.rates:
        return found_run(runner, *setting.run(flags, shots, method))
    accuracies = {}
    for rate in setting.rates[method]:
        name, config = choice(flags, setting, shots, method, rate)
        try:
            result = runner.result(fewshot, name, config)
        except Diverged:  # too high a rate
            continue
        if result is not None:
            accuracies[rate] = result["seeds"][0]["best_val_accuracy"]
    if not accuracies:
        return None
    chosen = max(accuracies, key=lambda rate: accuracies[rate])
    note = f"inner rate {chosen:g} of {' '.join(f'{rate:g}' for rate in accuracies)}"
    return found_run(runner, *setting.run(flags, shots, method, inner_lr=chosen), note)


def choice(
    flags: Flags, setting: Setting, shots: int, method: str, rate: float
) -> tuple[str, FewShotConfig]:
    """The name and configuration of a run with seed 0 by which an inner rate is chosen."""
    _, config = setting.run(flags, shots, method, inner_lr=rate, seeds=1)
    return f"{setting.start}-{shots}shot-{method}-choice-alpha-{rate:g}", config


def _other_domains(flags: Flags, runner: Runner) -> Lines:
    """The right half of Table 1: the trained networks, tested on other datasets."""
    domains = scales.DOMAINS[flags.scale]
    lines = [
        "**Other domains.** Images are brought to the size, channels and normalisation of the"
        " network's own. Ours only.",
        "",
        *header("trained on", "shots", "method", *domains, "sparsity"),
    ]
    for setting in SETTINGS["other domains", flags.scale]:
        for shots in SHOTS:
            for method in setting.methods:
                found = of_method(flags, runner, setting, shots, method)
                if found is not None:
                    tested = [on_domain(runner, found, domain) for domain in domains]
                    cells = map(cell, [*tested, _frozen(found)])
                    lines.append(row(setting.dataset, str(shots), METHODS[method], *cells))
    return lines


def on_domain(runner: Runner, found: Found, domain: str) -> list[float] | None:
    """The accuracies of a run's seeds on a dataset; for 1 shot with at most 35 steps."""
    config = found.config
    if domain == config.dataset:
        return of_seeds(found.result)
    steps = config.test_inner_steps if config.shots > 1 else min(config.test_inner_steps, 35)
    result = runner.evaluation(found.name, config, domain, steps)
    return None if result is None else of_seeds(result)


def _settings(config: FewShotConfig) -> list[str]:
    """The cells with the settings of a run."""
    return [
        f"{config.inner_lr:g}", f"{config.inner_steps}, {config.test_inner_steps}",
        f"{config.theta_lr:g}", f"{config.mask_lr:g}", config.mask_optimizer,
        f"{config.epochs * config.steps_per_epoch:,} x {config.meta_batch_size}",
    ]  # fmt: skip
