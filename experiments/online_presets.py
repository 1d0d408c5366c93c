"""The name by which the benchmarks know `experiments.online.presets`."""

from experiments.online.presets import preset_config

__all__ = ["preset_config"]
