"""Meta-learning where to learn: sparse-MAML and its relatives in JAX."""

from jaxsparse import data, gates, metrics, nn
from jaxsparse.cmaml import CMAMLState, cmaml_step, init_cmaml_state
from jaxsparse.gates import Gate, sparsity
from jaxsparse.inner import adapt
from jaxsparse.lamaml import LaMAMLState, init_lamaml_state, lamaml_step
from jaxsparse.losses import cross_entropy
from jaxsparse.maml import MetaState, evaluate, init_state, sparse_maml_step
from jaxsparse.straight_through import binary_mask, relu_mask

__version__ = "0.1.0"

__all__ = [
    "CMAMLState",
    "Gate",
    "LaMAMLState",
    "MetaState",
    "adapt",
    "binary_mask",
    "cmaml_step",
    "cross_entropy",
    "data",
    "evaluate",
    "gates",
    "init_cmaml_state",
    "init_lamaml_state",
    "init_state",
    "lamaml_step",
    "metrics",
    "nn",
    "relu_mask",
    "sparse_maml_step",
    "sparsity",
]
