"""The block of Conv4 and the layers of ResNet-12 in C++, compiled on the user's machine.

XLA's CPU client passes over arrays between operations, and calls two libraries for the products.
Written by hand, a piece of the batch stays in the cache from its images to its outputs.
"""

from jaxsparse.nn.native.calls import backward, forward, has_few_channels
from jaxsparse.nn.native.library import available, why_not
from jaxsparse.nn.native.residual_calls import (
    has_few_inputs,
    join_backward,
    join_forward,
    unit_backward,
    unit_forward,
)

__all__ = [
    "available",
    "backward",
    "forward",
    "has_few_channels",
    "has_few_inputs",
    "join_backward",
    "join_forward",
    "unit_backward",
    "unit_forward",
    "why_not",
]
