"""The name by which the benchmarks know `experiments.continual.presets`."""

from experiments.continual.presets import preset_config

__all__ = ["preset_config"]
