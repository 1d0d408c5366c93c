"""Settings for switching streams: Table S9 and Sec. B.3, and the tuned ones of OSAKA's public code.

For C-MAML's alpha, Table S9 gives 0.1 at both p. The code has other values, which are used here.
"""

import dataclasses
from typing import Any

from experiments.family import preset_flags
from jaxsparse.training.online import OnlineConfig

Settings = dict[str, Any]
_PUBLISHED = (0.98, 0.9)

# C-MAML with update modulation and prolonged adaptation. Its variants keep these settings, unless
# the paper gives others.
_CMAML: dict[float, Settings] = {
    0.98: {"inner_steps": 16, "theta_lr": 0.005, "modulation": 1000.0, "detection_threshold": 3.0},
    0.9: {"inner_steps": 16, "theta_lr": 0.001, "modulation": 1.0, "detection_threshold": 1.5},
}
# The initial m of sparse-C-MAML at p = 0.9 is not published: sparse-ReLU-C-MAML's range is used.
_RANGE = "0.005:0.1"


def _pretrain(batch_size: int, patience: int, second_order: bool) -> Settings:
    values = {"batch_size": batch_size, "patience": patience, "second_order": second_order}
    return {f"pretrain_{name}": value for name, value in values.items()}


_FINE_TUNING = {"inner_steps": 1, "inner_lr": 0.05, "theta_lr": 0.001}
_SETTINGS: dict[float, dict[str, Settings]] = {
    0.98: {
        "sparse-cmaml": {"inner_lr": 0.3, "mask_lr": 0.01, "mask_init": "pytorch", **_CMAML[0.98]},
        "sparse-relu-cmaml": {"mask_lr": 0.01, "mask_init": _RANGE, **_CMAML[0.98]},
        "cmaml": {"inner_lr": 0.01, "mask_lr": 0.005, **_CMAML[0.98]},
        "cmaml-fixed": {"inner_lr": 0.1, **_CMAML[0.98]},
        "online-adam": {"theta_lr": 0.005},
        "fine-tuning": _FINE_TUNING | _pretrain(batch_size=2, patience=5, second_order=False),
        "maml": {"inner_steps": 16, "inner_lr": 0.1, "theta_lr": 0.001,
                 **_pretrain(batch_size=8, patience=10, second_order=True)},
        "anil": {"inner_steps": 16, "inner_lr": 0.5, "theta_lr": 0.005,
                 **_pretrain(batch_size=1, patience=10, second_order=False)},
        "bgd": {"theta_lr": 10.0},
        "metacog": {"theta_lr": 10.0},
        "metabgd": {"theta_lr": 10.0, "inner_lr": 0.05, "inner_steps": 16},
    },
    0.9: {
        "sparse-cmaml": {"inner_lr": 0.3, "mask_lr": 0.003, "mask_init": _RANGE, **_CMAML[0.9]},
        "sparse-relu-cmaml": {"mask_lr": 0.01, "mask_init": _RANGE, **_CMAML[0.9]},
        "cmaml": {"inner_lr": 0.0005, "mask_lr": 0.001, **_CMAML[0.9]},
        "cmaml-fixed": {"inner_lr": 0.3, **_CMAML[0.9]},
        "online-adam": {"theta_lr": 0.001},
        "fine-tuning": _FINE_TUNING | _pretrain(batch_size=4, patience=20, second_order=True),
        "maml": {"inner_steps": 16, "inner_lr": 0.1, "theta_lr": 0.0001,
                 **_pretrain(batch_size=4, patience=5, second_order=False)},
        "anil": {"inner_steps": 16, "inner_lr": 0.05, "theta_lr": 0.005,
                 **_pretrain(batch_size=4, patience=20, second_order=True)},
        "bgd": {"theta_lr": 10.0},
        "metacog": {"theta_lr": 10.0},
        "metabgd": {"theta_lr": 10.0, "inner_lr": 0.01, "inner_steps": 16},
    },
}  # fmt: skip


def preset_config(p: float | str, method: str, data: str = "real") -> OnlineConfig:
    """The published settings of a method; for another p, those of the nearest published one.

    Args:
      p: the probability of no switch. A word that is not a number gives the default; the parser of
        the flags refuses it later.
      method: name of the method.
      data: "real" or "glyphs".

    Raises:
      ConfigError: there is no such p, method or data.
    """
    try:
        p = float(p)
    except ValueError:
        p = _PUBLISHED[0]
    nearest = min(_PUBLISHED, key=lambda known: abs(known - p))
    settings: Settings = {"p": p, "method": method, "data": data}
    return OnlineConfig(**settings, **_SETTINGS[nearest].get(method, {}))


def describe() -> str:
    """The settings of every method at both published p, as text for --help."""
    lines = [
        "what --p and --method set; another --p has the settings of the nearest one; other flags"
        " override them. Sources: Table S9: sparse-cmaml, sparse-relu-cmaml, cmaml-fixed; OSAKA's"
        " public code: all others. For cmaml, Table S9 has --inner-lr 0.1 at both p. For"
        " sparse-cmaml at 0.9 it has no --mask-init; here it is that of sparse-relu-cmaml:"
    ]
    for p, methods in _SETTINGS.items():
        for method, values in methods.items():
            config = dataclasses.asdict(preset_config(p, method))
            used = {name: config[name] for name in values}
            lines.append(f"  {p:g}, {method}: {preset_flags(used, ())}")
    return "\n".join(lines)
