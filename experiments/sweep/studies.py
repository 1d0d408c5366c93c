"""Open a study in its database, and check that it is the sweep that was asked for."""

import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage

from experiments import cli
from experiments.sweep import slots
from jaxsparse.training import RunError, writing
from jaxsparse.training.errors import one_line

_SETUP = "setup"
# How long a worker waits for another one's write to an SQLite file.
_LOCK_SECONDS = 60
_TRIES = 20
_THERE = re.compile("already exists|unique|duplicate", re.IGNORECASE)


@contextmanager
def opened(given: str | None, out: Path) -> Iterator[RDBStorage]:
    """The database at the given URL, else an SQLite file in `out`.

    Raises:
      RunError: it cannot be used, now or later within the context.
    """
    from sqlalchemy.exc import SQLAlchemyError

    # Optuna prints every trial; the command prints its own lines.
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    url = given or _sqlite(out / "study.db")
    shown = _shown(url)
    if given is None:
        with writing(out, RunError):
            out.mkdir(parents=True, exist_ok=True)
    try:
        storage = _connect(url)
        try:
            yield storage
        finally:
            with suppress(Exception):
                storage.remove_session()
            storage.engine.dispose()
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
        text = one_line(getattr(cause, "orig", None) or cause)
        raise RunError(f"--storage {shown}: {text}") from error
    except ImportError as error:
        raise RunError(f"--storage {shown}: its driver is not installed: {error}") from error


def _connect(url: str) -> RDBStorage:
    """The database, with Optuna's tables.

    Workers that start at the same time may all try to make the tables; then the losers, whose error
    says that something exists already, look again.
    """
    from sqlalchemy.exc import DBAPIError

    for _ in range(_TRIES):
        try:
            return _storage(url)
        except DBAPIError as error:
            if not _THERE.search(str(error.orig)):
                raise
            time.sleep(random.uniform(0.1, 0.5))
    return _storage(url)


def _storage(url: str) -> RDBStorage:
    options = {"connect_args": {"timeout": _LOCK_SECONDS}} if url.startswith("sqlite") else {}
    with slots.quiet():
        storage = RDBStorage(
            url,
            engine_kwargs=options,
            heartbeat_interval=slots.BEAT_SECONDS,
            grace_period=slots.GRACE_SECONDS,
        )
    if storage.engine.dialect.name == "sqlite":
        _lock_before_reading(storage.engine)
    return storage


def _lock_before_reading(engine: Any) -> None:
    """Let each transaction on SQLite begin with a lock.

    SQLite has no row locks and Python's driver begins a transaction only with the first write. So
    two workers could both read that a trial waits, and both take it.
    """
    from sqlalchemy import event

    engine.dispose()  # connections made so far
    event.listen(engine, "connect", lambda driver, _: setattr(driver, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))


def _sqlite(path: Path) -> str:
    """The URL of an SQLite file; characters of the path are escaped where necessary."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


def _shown(url: str) -> str:
    """The URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError) as error:
        raise RunError("--storage must be a URL such as sqlite:///study.db") from error


def open_study(
    storage: RDBStorage,
    name: str,
    setup: Mapping[str, Any],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> optuna.Study:
    """The study of this name, made if it is not there.

    Raises:
      RunError: the study of this name is of another sweep.
    """
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=sampler,
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )
    # Of workers that start at the same time each writes, and all must then read the same.
    if _SETUP not in study.user_attrs:
        study.set_user_attr(_SETUP, dict(setup))
    stored = study.user_attrs[_SETUP]
    differences = {part for part in {*stored, *setup} if stored.get(part) != setup.get(part)}
    if differences:
        raise RunError(f"--study {name} is another sweep: {_differing(setup, stored)}")
    return study


def _differing(setup: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    flat = [
        {**{k: v for k, v in part.items() if k != "config"}, **part.get("config", {})}
        for part in (setup, stored)
    ]
    return cli.differing(*flat).replace("the run has", "the study has")
