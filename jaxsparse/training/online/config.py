"""The configuration of a run on a switching stream."""

import dataclasses
from typing import Literal

from jaxsparse.gates import Init
from jaxsparse.nn.blocks import BLOCKS, Blocks
from jaxsparse.training import settings
from jaxsparse.training.errors import ConfigError

OnlineMethod = Literal[
    "sparse-cmaml",
    "sparse-relu-cmaml",
    "cmaml",
    "cmaml-fixed",
    "online-adam",
    "fine-tuning",
    "maml",
    "anil",
    "bgd",
    "metacog",
    "metabgd",
]
OnlineData = Literal["real", "glyphs"]

CMAML_METHODS = ("sparse-cmaml", "sparse-relu-cmaml", "cmaml", "cmaml-fixed")
PRETRAINED_METHODS = ("fine-tuning", "maml", "anil")


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
    """A run on a switching stream: everything that decides its numbers, and nothing else."""

    p: float = 0.98
    """probability of no switch of task between two timesteps"""
    method: OnlineMethod = "sparse-cmaml"
    """who learns; fine-tuning, maml and anil start from a network meta-learned beforehand"""
    data: OnlineData = "real"
    """real: Omniglot, MNIST and Fashion-MNIST, read through TensorFlow Datasets; glyphs, embedded,
    are letters rendered from fonts"""
    data_dir: str | None = None
    """where the data lies; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    timesteps: int = 10_000
    """T, batches of the stream"""
    ways: int = 10
    """classes of a task"""
    shots: int = 5
    """images of each class in a batch"""
    width: int = 64
    """channels of each of the four convolutions"""
    inner_steps: int = 16
    """K, gradient steps to adapt to a batch; fine-tuning takes them in its pretraining only"""
    inner_lr: float = 0.3
    """alpha, the inner step size; cmaml: where the learned rate of each tensor starts"""
    theta_lr: float = 0.005
    """rate of theta: Adam's, or that of outer_optimizer (maml and anil: in their pretraining only),
    or eta of bgd, metacog and metabgd"""
    mask_lr: float = 0.01
    """gamma_m, the rate, Adam's or outer_optimizer's, of the mask parameters, or of what cmaml
    learns of the inner rates"""
    mask_init: str = "pytorch"
    """m_0 of the sparse methods: pytorch (drawn as the layers are), kaiming (wider and centred, as
    in few-shot learning), a number, or a range low:high"""
    detection_threshold: float | None = 3.0
    """gamma, the fall of the loss that tells a new task; none: tasks are never told apart"""
    modulation: float | None = 1000.0
    """lambda, how fast the update's weight 1 - exp(-lambda loss) tends to 1; none: it is 1"""
    capacity: int = 101
    """stored batches at which theta is updated without a new task"""
    pairs: Literal["all", "one"] = "all"
    """of stored batches, support and query, that the C-MAML methods update theta and m on: all of
    the two halves, or one drawn at random (paper Algorithm 2)"""
    outer_optimizer: Literal["adam", "sgd"] = "adam"
    """of theta and m in the C-MAML methods: with sgd theta_lr, times the modulation, is the step
    (paper Algorithm 2)"""
    mask_theta: bool = False
    """multiply theta's gradient by the step sizes (the paper's App. A; not in its Algorithm 2)"""
    restart_now: bool = False
    """restart from theta on the batch that tells a new task (Algorithm 2), not on the next"""
    initial_std: float = 0.01
    """sigma_0 of bgd, metacog and metabgd"""
    samples: int = 5
    """networks that bgd, metacog and metabgd draw at each timestep"""
    pretrain_batch_size: int = 8
    """episodes of each meta-step that fine-tuning, maml and anil are pretrained with"""
    pretrain_second_order: bool = True
    """differentiate through the inner loop there"""
    pretrain_steps: int = 100
    """meta-steps of an epoch there, and batches of its validation"""
    pretrain_epochs: int = 1000
    """most epochs there"""
    pretrain_patience: int = 10
    """epochs there without a better validation before it ends"""
    pretrain_seed: int = 0
    """of the pretraining, which all seeds share"""
    blocks: Blocks = "auto"
    """what computes Conv4's blocks: native, C++ compiled for this machine's CPU, or xla, XLA's
    operations; auto: native on the CPU where there is a C++ compiler. They round differently"""
    log_every: int = 100
    """timesteps of each row of the metrics"""
    seed: int = 0
    """first seed: stream, initialisation and samples follow from it; the stream from nothing else,
    so that all methods see the same"""
    seeds: int = 1
    """number of seeds run side by side: seed, seed + 1, ..."""

    def __post_init__(self):
        settings.check_types(self)
        if not 0.0 <= self.p <= 1.0:
            raise ConfigError(f"p must lie in [0, 1], got {self.p}")
        settings.check_choices(self, _CHOICES)
        settings.check_positive(self, _POSITIVE)
        if self.ways < 2:  # of one class there is nothing to learn
            raise ConfigError(f"ways must be 2 or more, got {self.ways}")
        settings.check_not_negative(self, ("inner_lr", "theta_lr", "mask_lr"))
        for name in ("detection_threshold", "modulation", "initial_std"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, got {value}")
        for name in ("pairs", "outer_optimizer"):
            value, default = getattr(self, name), getattr(type(self), name)
            if self.method not in CMAML_METHODS and value != default:
                raise ConfigError(f"{name} must be {default} with {self.method}, got {value}")
        settings.check_seeds(self, ("seed", "pretrain_seed"))
        # A rate may not be drawn about zero, as the scores of a binary mask are.
        rates = self.method == "sparse-relu-cmaml"
        settings.parse_init(self.mask_init, ("pytorch",) if rates else _INIT_WORDS)

    @property
    def intervals(self) -> int:
        """Rows of the metrics beside the first: the last may be of fewer timesteps."""
        return -(-self.timesteps // self.log_every)


_POSITIVE = (
    *("timesteps", "ways", "shots", "width", "inner_steps", "capacity", "samples", "log_every"),
    *("seeds", "pretrain_batch_size", "pretrain_steps", "pretrain_epochs", "pretrain_patience"),
)
_INIT_WORDS = ("pytorch", "kaiming")
_CHOICES: dict[str, tuple[str, ...]] = {
    "pairs": ("all", "one"),
    "outer_optimizer": ("adam", "sgd"),
    "method": OnlineMethod.__args__,  # type: ignore[attr-defined]
    "data": OnlineData.__args__,  # type: ignore[attr-defined]
    "blocks": BLOCKS,
}


def parse_mask_init(text: str) -> Init:
    """Read a mask initialisation: `pytorch`, `kaiming`, a number, or a range `low:high`.

    Args:
      text: as given on the command line.

    Returns:
      A number, a pair of numbers, or the word itself.

    Raises:
      ConfigError: none of these.

    Example:
      >>> parse_mask_init("pytorch")
      'pytorch'
    """
    return settings.parse_init(text, _INIT_WORDS)
