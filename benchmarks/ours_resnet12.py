"""`sparse_maml_step` with ResNet-12."""

from benchmarks import ours_fewshot
from benchmarks.cases_resnet12 import ResNetCase
from jaxsparse import nn


class MetaStep(ours_fewshot.MetaStep):
    """The meta-step of `ours_fewshot` with ResNet-12."""

    case: ResNetCase

    def _network(self) -> nn.Model:
        return nn.resnet12(self.case.ways, self.case.channels, self.case.image)
