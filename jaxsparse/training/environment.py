"""What a run's numbers depend on besides its configuration: versions, JAX's settings, machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

import jaxsparse
from jaxsparse.machine import cpu_threads, default_platform, use_cpu_threads
from jaxsparse.nn.blocks import Blocks, choose_blocks
from jaxsparse.training.errors import ConfigError, RunError

# JAX's settings that decide a run's random numbers and the types of its arrays, as JAX has them
# where nobody sets them.
_DECISIVE = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_x64": False,
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}
_MOST_THREADS = 1024  # of any machine; XLA starts as many as it is told
# Settings that decide how the same numbers are computed.
_BITS = ("jax_default_matmul_precision", "jax_disable_jit")


def environment(blocks: Blocks | None) -> dict[str, Any]:
    """What a run's record says of where the run was begun.

    Args:
      blocks: the run's setting of what computes Conv4's blocks; None: its network has none.

    Returns:
      {"versions": ..., "device": ..., "environment": ...}: plain values, ready for JSON.

    Raises:
      ConfigError: such blocks cannot be had here.

    Example:
      >>> environment(blocks=None)["environment"]["jax_enable_x64"]
      False
    """
    here = {name: getattr(jax.config, name, None) for name in (*_DECISIVE, *_BITS)}
    if default_platform() == "cpu":
        # Only the number of threads counts there, and each device has one at least.
        here["threads"] = max(cpu_threads(), jax.local_device_count())
    else:
        here["devices"] = jax.local_device_count()
    if blocks is not None:
        here["blocks"] = blocks_here(blocks)
    if flags := os.environ.get("XLA_FLAGS"):
        here["XLA_FLAGS"] = flags
    return {
        "versions": {"jaxsparse": jaxsparse.__version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
        "environment": here,
    }


def blocks_here(blocks: Blocks) -> Literal["native", "xla"]:
    """What computes Conv4's blocks here, by a run's setting; see `choose_blocks`.

    Raises:
      ConfigError: what the setting names cannot be had.

    Example:
      >>> blocks_here("xla")
      'xla'
    """
    try:
        return choose_blocks(blocks)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def unusual_settings() -> dict[str, Any]:
    """Those of JAX's settings that decide a run's random numbers and are not JAX's own.

    Example:
      >>> unusual_settings()
      {}
    """
    here = {name: getattr(jax.config, name, usual) for name, usual in _DECISIVE.items()}
    return {name: value for name, value in here.items() if value != _DECISIVE[name]}


def use_threads_of(record: dict[str, Any]) -> None:
    """Have XLA divide operations among as many threads as where a run was begun, for equal bits.

    To be called before JAX is first used. Where it has no effect, `check_environment` warns.

    Args:
      record: the run's.

    Example:
      >>> use_threads_of(folder.config())
    """
    threads = _flat(record).get("threads")
    if isinstance(threads, int) and 1 <= threads <= _MOST_THREADS:
        use_cpu_threads(threads)


def check_environment(record: dict[str, Any], path: Path, warn: Callable[[str], None]) -> None:
    """Compare the place where a run goes on with that where it was begun.

    Args:
      record: the run's. What earlier versions did not keep in it is not compared.
      path: of the run's folder, for the messages.
      warn: called with one line where the run's bits may become others.

    Raises:
      RunError: the run cannot go on as it was begun.
      ConfigError: likewise: what its configuration says computes Conv4's blocks is not to be had.

    Example:
      >>> check_environment(folder.config(), folder.path, hooks.warn)
    """
    begun = _flat(record)
    if not begun:
        return
    here = _flat(environment(_blocks(record) if "blocks" in begun else None))
    for name in _DECISIVE:
        if name in begun and begun[name] != here[name]:
            raise RunError(
                f"{path} was begun with {name} {begun[name]} and cannot go on with {here[name]};"
                f" set {name.upper()}={begun[name]}"
            )
    names = [name for name in {**begun, **here} if name in begun or name == "XLA_FLAGS"]
    changes = [
        f"{name} {here.get(name)} (begun with {begun.get(name)})"
        for name in names
        if begun.get(name) != here.get(name)
    ]
    if changes:
        warn(
            f"{path} goes on with {', '.join(changes)}: its numbers may not be, to the last bit,"
            " those of a run that stayed where it was"
        )


def _blocks(record: dict[str, Any]) -> Blocks:
    """A run's setting of what computes Conv4's blocks, which earlier versions did not have."""
    config = record.get("config")
    return config.get("blocks", "auto") if isinstance(config, dict) else "auto"


_OLD_NAMES = {"C++": "native", "XLA": "xla"}  # that earlier versions gave what computes the blocks


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """All entries of a record that `environment` makes, under one another's names."""
    parts = [record.get(name) for name in ("versions", "environment")]
    flat: dict[str, Any] = {}
    for part in parts:
        flat |= part if isinstance(part, dict) else {}
    if "blocks" in flat:
        flat["blocks"] = _OLD_NAMES.get(str(flat["blocks"]), flat["blocks"])
    return flat | ({"device": record["device"]} if "device" in record else {})
