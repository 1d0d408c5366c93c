"""Cases of continual learning: glances of (sparse-)La-MAML at a batch of a stream."""

import dataclasses
import itertools
import math
from typing import Any, Literal, NamedTuple

import numpy as np

Method = Literal["sparse-lamaml", "lamaml"]


@dataclasses.dataclass(frozen=True)
class GlanceCase:
    """Glances at one batch with a ReLU network; each inner step is followed by a meta-loss.

    The defaults are the settings of the rotated digits.
    """

    method: Method = "sparse-lamaml"
    image: tuple[int, int, int] = (28, 28, 1)
    """height, width and channels"""
    convolutions: int = 0
    """number of 3x3 convolutions of stride 2 before the linear layers"""
    channels: int = 160
    """channels of each convolution"""
    hidden: tuple[int, ...] = (100, 100)
    ways: int = 10
    inner_steps: int = 10
    """K"""
    inner_rows: int = 1
    """images per inner step; the batch has K times as many"""
    meta_rows: int = 20
    """rows of the meta-loss: replayed rows and the batch"""
    glances: int = 5
    """consecutive passes over the batch, each in another order and with other replayed rows"""
    second_order: bool = False
    """differentiate through the inner gradients"""
    inner_lr: float = 0.15
    mask_lr: float = 1.7
    slope: float = 0.5
    """straight-through slope of sparse-lamaml's gate"""
    clip_norm: float = 2.0

    def __post_init__(self) -> None:
        if self.method not in ("sparse-lamaml", "lamaml"):
            raise ValueError(f"method must be sparse-lamaml or lamaml, got {self.method!r}")
        sizes = {"image": min(self.image), "hidden": min(self.hidden, default=1)}
        names = ("channels", "inner_steps", "inner_rows", "glances")
        for name, size in (sizes | {name: getattr(self, name) for name in names}).items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.convolutions < 0:
            raise ValueError(f"convolutions must be at least 0, got {self.convolutions}")
        if self.ways < 2:
            raise ValueError(f"ways must be at least 2, got {self.ways}")
        if self.meta_rows < self.batch_rows:
            raise ValueError(
                f"meta_rows must be at least the batch's {self.batch_rows}, got {self.meta_rows}"
            )

    @property
    def name(self) -> str:
        network = "-".join(map(str, self.dense_sizes))
        if self.convolutions:
            layers = "-".join(map(str, self.channels_by_layer))
            network = f"convolutions {layers}, {network}"
        plural = "s" if self.glances > 1 else ""
        images = f"K = {self.inner_steps}" + (
            f" x {self.inner_rows} images" if self.inner_rows > 1 else ""
        )
        order = ", second order" if self.second_order else ""
        return (
            f"{self.glances} glance{plural} of {self.method}{order}, {network}, {images},"
            f" {self.meta_rows} meta rows"
        )

    @property
    def kernels(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the layers' kernels by name, in order: [3, 3, c, o] or [n, m]."""
        pairs = list(itertools.pairwise(self.channels_by_layer))
        shapes: dict[str, tuple[int, ...]] = {
            f"conv{i + 1}": (3, 3, *pair) for i, pair in enumerate(pairs)
        }
        pairs = list(itertools.pairwise(self.dense_sizes))
        shapes |= {f"dense{i + 1}": pair for i, pair in enumerate(pairs[:-1])}
        return shapes | {"head": pairs[-1]}

    @property
    def channels_by_layer(self) -> tuple[int, ...]:
        """Channels of the images, then of each convolution's output."""
        return (self.image[2], *[self.channels] * self.convolutions)

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Height and width of each convolution's output."""
        h, w, _ = self.image
        out = []
        for _ in range(self.convolutions):
            h, w = (h + 1) // 2, (w + 1) // 2
            out.append((h, w))
        return out

    @property
    def dense_sizes(self) -> tuple[int, ...]:
        inputs = math.prod(self.image)
        if self.convolutions:
            inputs = math.prod(self.sides[-1]) * self.channels
        return (inputs, *self.hidden, self.ways)

    @property
    def batch_rows(self) -> int:
        return self.inner_steps * self.inner_rows

    @property
    def tasks_taken(self) -> int:
        """Glances per step, for rates per second."""
        return self.glances

    @property
    def inner_steps_taken(self) -> int:
        """Inner steps of all glances, for the time per inner step."""
        return self.glances * self.inner_steps

    def flops(self) -> float:
        """Floating-point operations of the layers' products in all glances.

        The forward pass, the kernel gradient and (except in the first layer) the input gradient
        each cost 2 x the kernel's entries per output position and row. Rows are those of all inner
        steps and meta-losses. Differentiating an inner gradient costs twice the gradient.
        """
        positions = [h * w for h, w in self.sides] + [1] * len(self.kernels)
        per_row = sum(
            2 * n * math.prod(kernel) * (3 if i else 2)
            for i, (n, kernel) in enumerate(zip(positions, self.kernels.values(), strict=False))
        )
        inner_rows = self.inner_rows * (3 if self.second_order else 1)
        return float(per_row * self.inner_steps_taken * (inner_rows + self.meta_rows))

    def draw(self, seed: int = 0) -> dict[str, Any]:
        """The arrays that every form starts from.

        They are "params" and "mask" (flat by name), "batch" (images [n, h, w, c], labels [n]),
        "replay" (the same with a leading axis of glances) and "orders" [glances, n] of the batch's
        rows. Images are sparse noisy copies of one prototype per class, about as bright as digits.
        """
        random = np.random.default_rng(seed)
        params: dict[str, np.ndarray] = {}
        for name, shape in self.kernels.items():
            # The fan-in of a convolution is 9 x its input channels, as in `nn.strided_cnn`.
            deviation = math.sqrt(2 / math.prod(shape[:-1]))
            params[f"{name}/kernel"] = _float32(random.normal(0.0, deviation, shape))
            params[f"{name}/bias"] = np.zeros(shape[-1], np.float32)
        # All but a few percent are positive, as after some tasks of a stream.
        mask = {
            n: _float32(self.inner_lr * random.normal(1.0, 0.7, p.shape)) for n, p in params.items()
        }
        strokes = random.uniform(size=(self.ways, *self.image)) < 0.2

        def rows(*shape: int) -> tuple[np.ndarray, np.ndarray]:
            labels = random.integers(self.ways, size=shape)
            images = strokes[labels] * random.uniform(size=(*shape, *self.image))
            return _float32(images), labels.astype(np.int32)

        orders = [random.permutation(self.batch_rows) for _ in range(self.glances)]
        return {
            "params": params,
            "mask": mask,
            "batch": rows(self.batch_rows),
            "replay": rows(self.glances, self.meta_rows - self.batch_rows),
            "orders": np.array(orders, np.int32),
        }


class Draws(NamedTuple):
    """The random draws for one batch of a stream.

    Attributes:
      orders: the order of the batch's rows, for each glance.
      picks: the slots of the memory that are replayed, for each glance.
      slots: for each row, in the order of the first glance, its slot in the full reservoir. A row
        whose slot is beyond the end is dropped.
    """

    orders: list[list[int]]
    picks: list[list[int]]
    slots: list[int]


def _float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


def split_cifar(method: Method, second_order: bool = False) -> GlanceCase:
    """The settings of streaming Split-CIFAR-10 with a memory of 1,000 images."""
    return GlanceCase(
        method=method,
        image=(32, 32, 3),
        convolutions=4,
        hidden=(640, 640),
        inner_steps=5,
        inner_rows=2,
        glances=2,
        second_order=second_order,
        inner_lr=0.01,
        mask_lr=0.01,
        slope=1.0,
    )


CASES = (
    GlanceCase(),
    GlanceCase(method="lamaml", mask_lr=0.3),
    split_cifar("sparse-lamaml"),
    split_cifar("lamaml"),
    split_cifar("lamaml", second_order=True),
)
