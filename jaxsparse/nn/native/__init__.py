"""The block of Conv4 in C++, compiled on the user's machine for its processor.

XLA's CPU client passes over arrays between operations, and calls two libraries for the products.
Written by hand, a piece of the batch stays in the cache from its images to its outputs.
"""

from jaxsparse.nn.native.calls import backward, forward, has_few_channels
from jaxsparse.nn.native.library import available, why_not

__all__ = ["available", "backward", "forward", "has_few_channels", "why_not"]
