"""The machine: its description, its rate of matrix products, its memory in use.

python -m benchmarks.machine gpu    # the description as JSON, with the name of its results folder
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def describe(device: str) -> dict[str, Any]:
    """Device, cores, versions, `blocks`, date and command, which are stored with the numbers."""
    from jaxsparse.machine import cores
    from jaxsparse.nn import native

    packages = ("jaxsparse", "jax", "jaxlib", "optax", "torch", "numpy")
    versions = {"python": platform.python_version(), **installed(packages)}
    return {
        "device": _processor() if device == "cpu" else _gpu(),
        "kind": device,
        "cores": cores(),
        "processor": _processor(),
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "versions": versions,
        "blocks": "native"
        if device == "cpu" and native.available()
        else "pallas"
        if device == "gpu"
        else "xla",
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
    }


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def slug(description: dict[str, Any]) -> str:
    """A folder name for the machine: the device's name without trademarks and clock rate."""
    name = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*", " ", description["device"], flags=re.I)
    if description["kind"] == "cpu":
        name = f"cpu {name} {description['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    import jax

    return jax.devices()[0].device_kind


MATMUL_SIZE = {"cpu": 2048, "gpu": 8192}


def matmul_rate(device: str, precision: str, with_torch: bool, repeats: int = 7) -> dict[str, Any]:
    """Operations per second of a large square matrix product, the roofline.

    Returns the best rate of each framework, and as "best" the larger one.
    """
    size = MATMUL_SIZE[device]
    products = {"jax": _jax_product(size, precision)}
    if with_torch:
        from benchmarks import torch_base

        products["torch"] = torch_base.product(size, device, precision)
    rates = {n: 2 * size**3 / _fastest(product, repeats) for n, product in products.items()}
    return {"size": size, **rates, "best": max(rates.values())}


def _fastest(product: Callable[[], None], repeats: int) -> float:
    """The least seconds of a call, after one call to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _jax_product(size: int, precision: str) -> Callable[[], None]:
    """A function that multiplies two matrices."""
    import jax

    a, b = jax.random.uniform(jax.random.key(0), (2, size, size))
    product = jax.jit(jax.numpy.matmul)

    def multiply() -> None:
        with jax.default_matmul_precision(precision):
            product(a, b).block_until_ready()

    return multiply


def memory(device: str) -> dict[str, int]:
    """Current and peak bytes in use, of the process or of the GPU."""
    if device == "cpu":
        return _process_memory()
    if "torch" in sys.modules:
        import torch

        return {"now": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()}
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return {"now": stats["bytes_in_use"], "peak": stats["peak_bytes_in_use"]}


def _process_memory() -> dict[str, int]:
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its peak is inherited from the parent process.
        sizes = dict(re.findall(r"^Vm(HWM|RSS):\s*(\d+) kB$", status.read_text(), re.MULTILINE))
        if len(sizes) == 2:
            return {"now": 1024 * int(sizes["RSS"]), "peak": 1024 * int(sizes["HWM"])}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"now": peak, "peak": peak}


if __name__ == "__main__":
    description = describe(*sys.argv[1:])
    print(json.dumps({**description, "folder": slug(description)}, indent=1))
