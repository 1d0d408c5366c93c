"""Conv4's block and ResNet-12's layers in C++, compiled on the user's machine for its processor.

XLA writes the result of each operation to memory. In this code, a piece of the batch stays in the
cache from the images to the outputs.
"""

from jaxsparse.nn.native.calls import (
    backward,
    conv_backward,
    conv_forward,
    forward,
    has_few_channels,
)
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
    "conv_backward",
    "conv_forward",
    "forward",
    "has_few_channels",
    "has_few_inputs",
    "join_backward",
    "join_forward",
    "unit_backward",
    "unit_forward",
    "why_not",
]
