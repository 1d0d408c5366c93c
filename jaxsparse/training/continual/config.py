"""The configuration of a run over a stream of tasks."""

import dataclasses
from typing import Literal

from jaxsparse.training import settings
from jaxsparse.training.errors import ConfigError

StreamName = Literal["rotations", "permutations", "many-permutations", "split-cifar10"]
ContinualMethod = Literal[
    "sparse-lamaml",
    "lamaml",
    "sync-lamaml",
    "cmaml-sync",
    "er",
    "mer",
    "gem",
    "agem",
    "sgd",
    "iid",
]
StreamData = Literal["mnist", "fashion_mnist", "cifar10", "glyphs"]

META_METHODS = ("sparse-lamaml", "lamaml", "sync-lamaml", "cmaml-sync")
TASK_MEMORY_METHODS = ("gem", "agem")


@dataclasses.dataclass(frozen=True)
class ContinualConfig:
    """A run over a stream of tasks: everything that decides its numbers, and nothing else."""

    stream: StreamName = "rotations"
    """the tasks: rotated or permuted digits (20; many-permutations: 100), or pairs of classes"""
    method: ContinualMethod = "sparse-lamaml"
    """who learns; sgd takes the stream as it comes, iid all tasks at once"""
    data: StreamData = "mnist"
    """mnist, fashion_mnist and cifar10 are read through TensorFlow Datasets; glyphs, embedded,
    are digits rendered from fonts"""
    data_dir: str | None = None
    """where the data lies; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    data_seed: int = 0
    """of the angles or permutations, which all seeds share"""
    tasks: int = 20
    """T, tasks of the stream; split-cifar10: classes / 2"""
    samples_per_task: int | None = 1000
    """training images of each task; none: all there are"""
    epochs: int = 1
    """passes over each task's images; only the first fills the memory"""
    batch_size: int = 10
    """images that arrive together; mer takes them one by one, as its public code does"""
    glances: int = 5
    """updates on each batch in a row"""
    memories: int = 200
    """images kept in memory, of all tasks together"""
    memory_per_task: int | None = None
    """images kept of each task by gem and agem, whatever memories says; none: memories / tasks"""
    replay_batch_size: int = 10
    """images replayed beside a batch"""
    network: Literal["mlp", "cnn4", "cnn3"] = "mlp"
    """mlp: two hidden layers; cnn4, cnn3: strided 3x3 convolutions, two hidden layers"""
    width: int = 100
    """units of the mlp's hidden layers, or channels of the convolutions"""
    init: Literal["kaiming", "xavier"] = "kaiming"
    """of theta: normal by fan-in, or uniform; biases 0"""
    augment: bool = False
    """crop, flip and change the brightness of training images (32x32, 3 channels)"""
    inner_lr: float = 0.15
    """alpha_0, the inner step size, and the start of what is learned of it"""
    mask_lr: float = 1.7
    """gamma_m, the rate of the mask parameters (SGD)"""
    theta_lr: float = 0.1
    """rate of theta (SGD) where it is not gated: sync-lamaml, cmaml-sync and the other methods"""
    mask_init: str = "auto"
    """m_0: kaiming, a number, or a range low:high; auto: inner_lr"""
    slope: float = 0.5
    """straight-through slope of sparse-lamaml's gate: 1/2 in the public code, 1 in Eq. 10"""
    meta_iterates: Literal["all", "last"] = "all"
    """the meta-loss is the mean over all inner iterates, or the last one's (paper Algorithm 1)"""
    gradient_sum: Literal["before", "after"] = "before"
    """the gradient of m takes inner gradients before each inner step (Eq. 10, public code), or
    after it (paper Algorithm 1)"""
    inner_batch_size: int = 1
    """images per inner step"""
    inner_rates: Literal["rectified", "raw"] = "rectified"
    """in the inner loop of lamaml and sync-lamaml: the learned rates as theta's step has them, or
    also where they are negative (public code for images)"""
    inner_clip: float | None = None
    """bound of each entry of the inner gradients"""
    second_order: bool = False
    """differentiate the meta-loss through the inner gradients"""
    clip_norm: float | None = 2.0
    """bound of each gradient's norm"""
    replay_passes: int = 5
    """s, mer: passes over an image and its replayed ones"""
    within_rate: float = 0.01
    """beta, mer: how far the weights follow each pass"""
    across_rate: float = 1.0
    """gamma, mer: how far they follow all of an image's passes"""
    margin: float = 0.0
    """gem: the least that each violated constraint weighs in the projection (memory strength)"""
    measure: Literal["all", "diagonal"] = "all"
    """of the accuracy matrix: every entry, or the diagonal, the one above it and the last row"""
    validation: bool = False
    """measure on training images held out, and leave the test images alone"""
    seed: int = 0
    """first seed: images drawn, their order, initialisation and replay all follow from it"""
    seeds: int = 1
    """number of seeds run side by side: seed, seed + 1, ..."""

    def __post_init__(self):
        settings.check_types(self)
        settings.check_positive(self, _POSITIVE)
        settings.check_not_negative(self, _NOT_NEGATIVE)
        settings.check_choices(self, _CHOICES)
        for name in ("clip_norm", "inner_clip"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise ConfigError(f"{name} must be above 0, got {bound}")
        settings.check_seeds(self, ("seed", "data_seed"))
        self._check_batches()
        # A rate may not be drawn about zero, as the scores of a binary mask are.
        rates = self.method in ("lamaml", "sync-lamaml")
        settings.parse_init(self.mask_init, ("auto",) if rates else ("kaiming", "auto"))

    def _check_batches(self):
        size, samples = self.batch_size, self.samples_per_task
        if samples is not None and size > samples:
            raise ConfigError(f"batch_size must be at most samples_per_task {samples}, got {size}")
        if samples is not None and samples % size:
            raise ConfigError(f"batch_size must divide samples_per_task {samples}, got {size}")
        if self.method in META_METHODS and size % self.inner_batch_size:
            raise ConfigError(
                f"inner_batch_size must divide batch_size {size}, got {self.inner_batch_size}"
            )
        if self.gradient_sum != "before" and self.second_order:
            raise ConfigError("gradient_sum must be before with second_order, got after")
        per_task = self.memory_per_task
        if self.method not in TASK_MEMORY_METHODS:
            if per_task is not None:
                raise ConfigError(
                    f"memory_per_task must be none with {self.method}, which keeps images of all"
                    f" tasks together, got {per_task}"
                )
        elif per_task is None and self.memories < self.tasks:
            raise ConfigError(
                f"memories must be at least 1 for each of {self.tasks} tasks with {self.method},"
                f" got {self.memories}"
            )


_POSITIVE = (
    *("tasks", "samples_per_task", "epochs", "batch_size", "glances", "memories", "width"),
    *("memory_per_task", "replay_batch_size", "inner_batch_size", "replay_passes", "seeds"),
)
_NOT_NEGATIVE = (
    *("inner_lr", "mask_lr", "theta_lr", "slope", "within_rate", "across_rate", "margin"),
)
_CHOICES: dict[str, tuple[str, ...]] = {
    "stream": StreamName.__args__,  # type: ignore[attr-defined]
    "method": ContinualMethod.__args__,  # type: ignore[attr-defined]
    "data": StreamData.__args__,  # type: ignore[attr-defined]
    "network": ("mlp", "cnn4", "cnn3"),
    "init": ("kaiming", "xavier"),
    "inner_rates": ("rectified", "raw"),
    "meta_iterates": ("all", "last"),
    "gradient_sum": ("before", "after"),
    "measure": ("all", "diagonal"),
}
