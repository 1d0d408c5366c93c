"""Weights & Biases. Source: its documentation, https://docs.wandb.ai/models/ref/python."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import cli
from experiments.loggers.service import Ending, Run

# How long the end of a run waits for uploads; the rest can be sent with `wandb sync`.
_UPLOAD_SECONDS = 120.0


class WeightsAndBiases:
    """Logs to a run in the project that WANDB_PROJECT names; its files are in the run's folder."""

    place = ""
    _run: Any

    def open(self, run: Run, known: str | None) -> str:
        """Start or continue a run; see `Service`."""
        import wandb

        quiet = wandb.Settings(silent=True, console="off", finish_timeout=_UPLOAD_SECONDS)
        offline = wandb.setup(quiet).settings.mode not in ("online", "shared")
        if not offline and not wandb.login(prompt=False, verify=False):
            raise ConnectionError("not logged in; run `wandb login`, or set WANDB_MODE=offline")
        identity = known or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            id=identity,
            resume=None if offline else "allow",  # offline, it has no effect but a warning
            project=os.environ.get("WANDB_PROJECT", "jaxsparse"),
            name=run.path.absolute().name,
            group=run.family,
            config=run.settings,
            dir=run.path,
            settings=quiet,
        )
        files = cli.quoted(Path(self._run.dir).parent)
        self.place = f"offline; to upload: wandb sync {files}" if offline else str(self._run.url)
        return identity

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self._run.log(dict(values), step=step, commit=True)

    def figure(self, path: Path) -> None:
        """Log a PNG file as an image."""
        import wandb

        self._run.log({f"figures/{path.stem}": wandb.Image(str(path))})

    def result(self, path: Path, values: Mapping[str, float]) -> None:
        """Add the numbers to the summary, and the file to the run's files."""
        self._run.summary.update(dict(values))
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, ending: Ending) -> None:
        """Wait for the uploads."""
        self._run.finish(exit_code=0 if ending == "finished" else 1)
