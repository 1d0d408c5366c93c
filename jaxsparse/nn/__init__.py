"""Networks for few-shot tasks, each a `Model(init, apply)` on a plain dict of arrays."""

from jaxsparse.nn.models import Model, conv4, mlp, resnet12

__all__ = ["Model", "conv4", "mlp", "resnet12"]
