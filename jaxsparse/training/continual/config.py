"""The configuration of a continual-learning run."""

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
    """A continual-learning run: all settings that its results depend on."""

    stream: StreamName = "rotations"
    """the tasks: rotations or permutations of the images (20 tasks; many-permutations: 100), or
    pairs of classes (split-cifar10)"""
    method: ContinualMethod = "sparse-lamaml"
    """the algorithm; sgd: plain SGD without replay; iid: SGD on all tasks mixed"""
    data: StreamData = "mnist"
    """mnist, fashion_mnist and cifar10 are read through TensorFlow Datasets; glyphs are digits
    rendered from fonts and need no download"""
    data_dir: str | None = None
    """folder of the data; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    data_seed: int = 0
    """seed of the angles or permutations; all seeds of a run share them"""
    tasks: int = 20
    """T, number of tasks; for split-cifar10 half the number of classes"""
    samples_per_task: int | None = 1000
    """training images per task; none: all images"""
    epochs: int = 1
    """passes over the images of each task; images are stored in memory only in the first pass"""
    batch_size: int = 10
    """images per batch; mer learns them one by one, as its public code does"""
    glances: int = 5
    """consecutive updates on each batch"""
    memories: int = 200
    """capacity of the replay memory, in images, for all tasks together"""
    memory_per_task: int | None = None
    """images that gem and agem store per task; none: memories / tasks"""
    replay_batch_size: int = 10
    """replayed images per batch"""
    network: Literal["mlp", "cnn4", "cnn3"] = "mlp"
    """mlp: two hidden layers; cnn4, cnn3: strided 3x3 convolutions, then two hidden layers"""
    width: int = 100
    """units per hidden layer of the mlp, or channels of the convolutions"""
    init: Literal["kaiming", "xavier"] = "kaiming"
    """initialisation of theta: kaiming normal (fan-in) or xavier uniform; biases are 0"""
    augment: bool = False
    """randomly crop, flip and brighten the training images (32x32, 3 channels)"""
    inner_lr: float = 0.15
    """alpha_0, the inner step size; for learned rates their initial value"""
    mask_lr: float = 1.7
    """gamma_m, learning rate of the mask parameters (SGD)"""
    theta_lr: float = 0.1
    """learning rate of theta (SGD); sparse-lamaml and lamaml use the gate's step sizes instead"""
    mask_init: str = "auto"
    """initial mask parameters: kaiming, a number, or a range low:high (uniform); auto: inner_lr"""
    slope: float = 0.5
    """straight-through slope of sparse-lamaml's gate: 0.5 in the public code, 1 in Eq. 10"""
    meta_iterates: Literal["all", "last"] = "all"
    """meta-loss: mean over all inner iterates, or only the last one (the paper's Algorithm 1)"""
    gradient_sum: Literal["before", "after"] = "before"
    """inner gradients in the gradient of m: those before each inner step (Eq. 10, public code), or
    those after it (the paper's Algorithm 1)"""
    inner_batch_size: int = 1
    """images per inner step"""
    inner_rates: Literal["rectified", "raw"] = "rectified"
    """inner-loop rates of lamaml and sync-lamaml: max(m, 0), as in theta's step, or m itself, which
    may be negative (the public code for images)"""
    inner_clip: float | None = None
    """clip each entry of the inner gradients to [-inner_clip, inner_clip]; none: no clipping"""
    second_order: bool = False
    """differentiate the meta-loss through the inner gradients"""
    clip_norm: float | None = 2.0
    """largest norm of each gradient; larger ones are scaled down; none: no clipping"""
    replay_passes: int = 5
    """s (mer): batches per image; each is the image and its replayed images"""
    within_rate: float = 0.01
    """beta (mer): Reptile rate within each of these batches"""
    across_rate: float = 1.0
    """gamma (mer): Reptile rate across these batches"""
    margin: float = 0.0
    """memory strength (gem): smallest coefficient of each past task's gradient in the projection"""
    measure: Literal["all", "diagonal"] = "all"
    """entries of the accuracy matrix to measure: all, or only what the metrics need (the diagonal,
    the superdiagonal and the last row)"""
    validation: bool = False
    """measure on held-out training images instead of the test images"""
    seed: int = 0
    """first seed; it determines the images drawn, their order, the initialisation and the replay"""
    seeds: int = 1
    """number of seeds to run in parallel: seed, seed + 1, ..."""

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
        # kaiming values are centred at zero: right for the scores of a mask, not for rates.
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
