"""A described NVIDIA H200: what it is, how fast it is, and compilation for it."""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

NAME = "NVIDIA H200"
BANDWIDTH = 4.8e12  # bytes per second of the memory
# Floating-point operations per second. Float32: the peak. Tensor cores: about four fifths of the
# peak without sparsity, as much as large products reach.
RATES = {"float32": 67e12, "tensorfloat32": 400e12, "bfloat16": 800e12}
# Seconds from the start of a small kernel to that of the next one; assumed, not measured.
LAUNCH = 2.5e-6
PLUGINS = {"jax-cuda13-plugin": "jax_cuda13_plugin", "jax-cuda13-pjrt": "jax_plugins.xla_cuda13"}

_LIMITS = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_block_optin": 227 * 1024,
    "shared_memory_per_core": 228 * 1024,
    "registers_per_core_limit": 64 * 1024,
    "registers_per_block_limit": 64 * 1024,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "memory_bandwidth": int(BANDWIDTH),
    "l2_cache_size": 50 * 2**20,
    "device_memory_size": 150_000_000_000,
    "clock_rate_ghz": 1.98,
}


def _description() -> str:
    """The GPU as XLA's GpuTargetConfig, in the text format of protocol buffers."""
    limits = " ".join(f"{name}: {value}" for name, value in _LIMITS.items())
    capability = "cuda_compute_capability { major: 9 minor: 0 }"
    return (
        f"gpu_device_info {{ {limits} {capability} }} platform_name: 'CUDA'"
        f" dnn_version_info {{ major: 9 minor: 28 patch: 1 }} device_description_str: '{NAME}'"
    )


def missing() -> str | None:
    """What keeps JAX from compiling for a GPU here, with the remedy, in one line; None: nothing."""
    want = importlib.metadata.version("jaxlib")
    absent = [name for name, module in PLUGINS.items() if not _found(module)]
    if absent:
        return f"{' and '.join(absent)} not installed; {_remedy(want)}"
    got = {name: importlib.metadata.version(name) for name in PLUGINS}
    if set(got.values()) != {want}:
        versions = " and ".join(f"{name} {version}" for name, version in got.items())
        return f"{versions} do not fit jaxlib {want}; {_remedy(want)}"
    return None


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # there is no jax_plugins at all
        return False


def _remedy(version: str) -> str:
    return "install with pip install --no-deps " + " ".join(
        f"{name}=={version}" for name in PLUGINS
    )


@functools.cache
def sharding() -> NamedSharding:
    """The placement of a program's arguments on the described GPU."""
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", target_config=_description(), topology="1x1x1"
    )
    mesh = Mesh(np.array(described.devices), ("device",))
    return NamedSharding(mesh, PartitionSpec())


def compile_for_gpu(
    function: Callable,
    *args: Any,
    options: dict[str, Any] | None = None,
    precision: str | None = None,
) -> Any:
    """Compile a function for the described GPU; nothing is run.

    Args:
      function: a function, jitted or not.
      *args: its arguments; only their shapes and dtypes are used.
      options: compiler options.
      precision: of matrix products and convolutions; None: JAX's default.

    Returns:
      The compiled function, with `as_text()` and `memory_analysis()`.

    Raises:
      RuntimeError: from JAX, if the plugins are missing; see `missing`.

    Examples:
      >>> compile_for_gpu(jnp.matmul, jnp.zeros((4, 2)), jnp.zeros((2, 3))).as_text()[:9]
      'HloModule'
    """
    where = sharding()

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=where)

    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    # Code that asks for the default device while it is traced takes the way of a GPU.
    with jax.default_device("gpu"), jax.default_matmul_precision(precision):
        lowered = jitted.lower(*jax.tree.map(placed, args))
    return lowered.compile(compiler_options=options)
