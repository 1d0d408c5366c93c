"""What the results of a run depend on besides its configuration: versions, JAX's flags, machine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

import jaxsparse
from jaxsparse.machine import cpu_threads, default_platform, use_cpu_threads
from jaxsparse.nn.blocks import Blocks, choose_blocks
from jaxsparse.training.errors import ConfigError, RunError

# JAX's flags that decide random numbers and array types, with their defaults.
_DECISIVE = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_x64": False,
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}
_MOST_THREADS = 1024  # an upper limit: XLA starts as many threads as it is told
# Flags that change results by rounding only.
_BITS = ("jax_default_matmul_precision", "jax_disable_jit")


def environment(blocks: Blocks | None) -> dict[str, Any]:
    """The part of a run's config.json that describes where it was started.

    Args:
      blocks: the run's `blocks` setting; None if its network does not use it.

    Returns:
      {"versions": ..., "device": ..., "environment": ...}: plain values, ready for JSON.

    Raises:
      ConfigError: this machine cannot run these blocks.

    Examples:
      >>> environment(blocks=None)["environment"]["jax_enable_x64"]
      False
    """
    here = {name: getattr(jax.config, name, None) for name in (*_DECISIVE, *_BITS)}
    if default_platform() == "cpu":
        # On the CPU only the number of threads matters, and each device has at least one.
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


def blocks_here(blocks: Blocks) -> Literal["native", "pallas", "xla"]:
    """The implementation of the blocks on this machine; `choose_blocks`, but a ConfigError."""
    try:
        return choose_blocks(blocks)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def unusual_settings() -> dict[str, Any]:
    """The flags of JAX that decide random numbers and do not have their default value."""
    here = {name: getattr(jax.config, name, usual) for name, usual in _DECISIVE.items()}
    return {name: value for name, value in here.items() if value != _DECISIVE[name]}


def use_threads_of(record: dict[str, Any]) -> None:
    """Let XLA use as many threads as when the run was started, so that results have equal bits.

    Call it before JAX is first used. If it has no effect, `check_environment` warns. `record` is
    the run's config.json.
    """
    threads = _flat(record).get("threads")
    if isinstance(threads, int) and 1 <= threads <= _MOST_THREADS:
        use_cpu_threads(threads)


def check_environment(record: dict[str, Any], path: Path, warn: Callable[[str], None]) -> None:
    """Compare the environment of a resumed run with the one it was started in.

    Args:
      record: the run's config.json. Entries that earlier versions did not store are not compared.
      path: the run's folder, for the messages.
      warn: called with one line if the results may differ in their last bits.

    Raises:
      RunError: a flag of JAX differs that decides random numbers or array types.
      ConfigError: this machine cannot run the `blocks` of the configuration.
    """
    started = _flat(record)
    if not started:
        return
    here = _flat(environment(_blocks(record) if "blocks" in started else None))
    for name in _DECISIVE:
        if name in started and started[name] != here[name]:
            raise RunError(
                f"{path} was started with {name} {started[name]} and cannot be resumed with"
                f" {here[name]}; set {name.upper()}={started[name]}"
            )
    names = [name for name in {**started, **here} if name in started or name == "XLA_FLAGS"]
    changes = [
        f"{name} {here.get(name)} (started with {started.get(name)})"
        for name in names
        if started.get(name) != here.get(name)
    ]
    if changes:
        warn(
            f"{path} is resumed with {', '.join(changes)}: its numbers may differ in the last bits"
            " from those of a run in an unchanged environment"
        )


def _blocks(record: dict[str, Any]) -> Blocks:
    """A run's `blocks` setting; "auto" for runs of earlier versions, which have none."""
    config = record.get("config")
    return config.get("blocks", "auto") if isinstance(config, dict) else "auto"


_OLD_NAMES = {"C++": "native", "XLA": "xla"}  # names of `blocks` in earlier versions


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """All entries made by `environment` in one flat dict."""
    parts = [record.get(name) for name in ("versions", "environment")]
    flat: dict[str, Any] = {}
    for part in parts:
        flat |= part if isinstance(part, dict) else {}
    if "blocks" in flat:
        flat["blocks"] = _OLD_NAMES.get(str(flat["blocks"]), flat["blocks"])
    return flat | ({"device": record["device"]} if "device" in record else {})
