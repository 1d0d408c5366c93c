"""Meta-learning where to learn: sparse-MAML and its relatives in JAX."""

import importlib
from typing import Any

from jaxsparse import continual, data, gates, metrics, nn
from jaxsparse.cmaml import CMAMLState, cmaml_step, init_cmaml_state
from jaxsparse.continual.learners import agem, bgd, er, frozen_maml, gem, mer, metabgd
from jaxsparse.gates import Gate, sparsity
from jaxsparse.inner import adapt
from jaxsparse.lamaml import LaMAMLState, init_lamaml_state, lamaml_step
from jaxsparse.learner import Learner, StreamBatch
from jaxsparse.learners import cmaml, lamaml, maml
from jaxsparse.losses import cross_entropy
from jaxsparse.maml import MetaState, evaluate, init_state, predict, sparse_maml_step
from jaxsparse.straight_through import binary_mask, relu_mask

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use: it needs Orbax, whose import takes a second.
    if name == "training":
        return importlib.import_module("jaxsparse.training")
    if name in ("load_learner", "pretrained"):
        return getattr(importlib.import_module("jaxsparse.training.fewshot.trained"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CMAMLState",
    "Gate",
    "LaMAMLState",
    "Learner",
    "MetaState",
    "StreamBatch",
    "adapt",
    "agem",
    "bgd",
    "binary_mask",
    "cmaml",
    "cmaml_step",
    "continual",
    "cross_entropy",
    "data",
    "er",
    "evaluate",
    "frozen_maml",
    "gates",
    "gem",
    "init_cmaml_state",
    "init_lamaml_state",
    "init_state",
    "lamaml",
    "lamaml_step",
    "load_learner",
    "maml",
    "mer",
    "metabgd",
    "metrics",
    "nn",
    "predict",
    "pretrained",
    "relu_mask",
    "sparse_maml_step",
    "sparsity",
    "training",
]
