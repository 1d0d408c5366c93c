"""Networks. Each is a `Model(init, apply)` whose parameters are a plain dict of arrays."""

from jaxsparse.nn.from_flax import from_linen, from_nnx
from jaxsparse.nn.model import Model
from jaxsparse.nn.models import conv4, mlp, normalised, resnet12, strided_cnn

__all__ = [
    "Model",
    "conv4",
    "from_linen",
    "from_nnx",
    "mlp",
    "normalised",
    "resnet12",
    "strided_cnn",
]
