"""The console output, the table and the figures of a sweep."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.table import Table

from experiments.drawing import draw_run
from experiments.report import ConsoleReport, percent
from experiments.sweep.definition import Sweep
from experiments.sweep.results import TRIALS
from experiments.sweep.slots import Slots, quiet
from jaxsparse import training
from jaxsparse.training import writing
from jaxsparse.training.files import replace_text
from jaxsparse.training.rows import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 10


class SweepReport(ConsoleReport):
    """Reports a sweep on the console."""

    def __init__(self, sweep: Sweep, slots: Slots):
        self.sweep, self.slots = sweep, slots
        self._told_waiting, self._done = False, len(slots.finished())
        header = (
            f"sweep {sweep.name}: {len(sweep.points)} trials over {', '.join(sweep.space)},"
            f" sampler {sweep.flags.sampler}; value: {sweep.tuned.VALUE}"
        )
        super().__init__(header, sweep.out, ("trial", len(sweep.points)), None, ())

    def progress(self, progress: training.Progress) -> None:
        """Move the bar: how far the current program is."""
        # Not asked from the database, which many workers may share.
        number, count = self._done, len(self.sweep.points)
        left = progress.seconds_left
        self.bar.update(
            self.task,
            completed=progress.done,
            description=f"trials {number}/{count} {progress.stage} step {progress.step}",
            left="" if left is None else f"{left:.0f} s left in this program",
        )

    def finished(self, trial: Trial, value: float | None) -> None:
        """Print the value of a trial and the best one so far."""
        self._told_waiting = False
        shown = "pruned" if value is None else f"{percent(value)}%"
        line = f"trial {trial.number:>4}  {shown:>7}  {settings(trial.params)}"
        finished = self.slots.finished()
        self._done = len(finished)
        if (best := best_of(finished)) is not None:
            line += f"  (best {percent(best.value)}%, trial {best.number})"
        self.print(line)

    def waiting(self, slots: Slots) -> None:
        """Say once that other workers have the rest of the trials."""
        if not self._told_waiting:
            left = len(self.sweep.points) - len(slots.finished()) - len(slots.given_up())
            self.print(f"waiting for {left} trials of other workers")
        self._told_waiting = True

    def table(self) -> None:
        """Print the best trials, and write all of them to trials.json."""
        finished = self.slots.finished()
        done = ranked(finished)
        table = Table(title=f"best of {len(done)} trials, {self.sweep.tuned.VALUE}")
        for name in ("trial", *self.sweep.space, "value"):
            table.add_column(name, justify="right")
        for trial in done[:_SHOWN]:
            values = [number(trial.params[name]) for name in self.sweep.space]
            table.add_row(str(trial.number), *values, percent(trial.value))
        self.print(table)
        path = self.sweep.out / TRIALS
        rows = [
            {"trial": t.number, "state": t.state.name, "value": t.value, "params": t.params}
            for t in [*done, *(t for t in finished if t not in done)]
        ]
        with writing(path):
            self.sweep.out.mkdir(parents=True, exist_ok=True)
            replace_text(path, to_json({"setup": self.sweep.setup(), "trials": rows}))
        for slot in self.slots.given_up():
            warnings.warn(
                f"trial slot {slot} was given up, because its workers died again and again",
                stacklevel=2,
            )

    def figures(self) -> None:
        """Draw the importance of the settings, and the value over pairs of them."""
        figures: dict[str, Any] = {"importance.png": _importance}
        if len(self.sweep.space) > 1:
            figures["contour.png"] = _contour
        done = optuna.create_study(direction="maximize")  # only the trials that count
        done.add_trials(self.slots.finished())
        for name, why in draw_run(self.sweep.out, figures, [], done).items():
            warnings.warn(f"{self.sweep.out / name} is not drawn: {why}", stacklevel=2)


def best_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The trial with the highest value, the first of equal ones; None if none is complete."""
    return next(iter(ranked(trials)), None)


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials from the best on."""
    done = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    return sorted(done, key=lambda t: (-(t.value if t.value is not None else math.nan), t.number))


def settings(params: dict[str, Any]) -> str:
    """The values of a trial in one line."""
    return " ".join(f"{name} {number(value)}" for name, value in params.items())


def number(value: float) -> str:
    """A value with four digits."""
    return f"{value:.4g}"


def _importance(rows: Any, study: optuna.Study) -> "Figure":
    from optuna.visualization.matplotlib import plot_param_importances

    figure, (axis,) = _drawn(plot_param_importances, study)
    axis.set_title("Importance of the settings", loc="left")
    axis.set(xlabel="share of the variance", ylabel="")
    axis.grid(visible=False, axis="y")
    axis.get_legend().remove()  # there is one measure
    return figure


def _contour(rows: Any, study: optuna.Study) -> "Figure":
    from optuna.visualization.matplotlib import plot_contour

    figure, axes = _drawn(plot_contour, study)
    side = max(5, 1 + 2.6 * len(axes) ** 0.5)
    figure.set_size_inches(side + 1, side)
    figure.suptitle("Value over pairs of settings")
    for axis in axes:
        axis.set_title("")
        axis.grid(visible=False)
        for scale in (axis.xaxis, axis.yaxis):
            if scale.get_scale() == "log":
                _plain_numbers(scale)
    return figure


def _plain_numbers(scale: Any) -> None:
    """Few ticks on a logarithmic axis, with plain numbers; powers of ten take more room."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    scale.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    scale.set_major_formatter(StrMethodFormatter("{x:g}"))
    scale.set_minor_formatter(NullFormatter())


def _drawn(plot: Any, study: optuna.Study) -> tuple["Figure", list[Any]]:
    """The figure that one of Optuna's functions draws, in our style, and its panels."""
    from matplotlib import pyplot

    pyplot.switch_backend("agg")  # no windows
    with quiet(), _without_ggplot():
        axes = np.ravel(plot(study))
    figure = axes[0].figure
    pyplot.close(figure)  # pyplot keeps no reference; the figure itself can still be saved
    return figure, list(axes)


@contextlib.contextmanager
def _without_ggplot() -> Iterator[None]:
    """Optuna's functions choose matplotlib's style "ggplot"; make it change nothing."""
    from matplotlib import style

    own = style.library["ggplot"]
    style.library["ggplot"] = type(own)()
    try:
        yield
    finally:
        style.library["ggplot"] = own
