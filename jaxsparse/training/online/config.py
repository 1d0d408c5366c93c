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
    """A run on a switching stream: all settings that its results depend on."""

    p: float = 0.98
    """probability that the task stays the same from one timestep to the next"""
    method: OnlineMethod = "sparse-cmaml"
    """the algorithm; fine-tuning, maml and anil start from a pretrained (meta-learned) network"""
    data: OnlineData = "real"
    """real: Omniglot, MNIST and Fashion-MNIST, read through TensorFlow Datasets; glyphs: letters
    rendered from fonts, no download"""
    data_dir: str | None = None
    """folder of the data; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    timesteps: int = 10_000
    """T, number of timesteps; each brings one batch"""
    ways: int = 10
    """classes per task"""
    shots: int = 5
    """images per class in a batch"""
    width: int = 64
    """channels of each of the four convolutions"""
    inner_steps: int = 16
    """K, inner steps per batch; fine-tuning uses them only in its pretraining"""
    inner_lr: float = 0.3
    """alpha, the inner step size; cmaml: initial value of the learned rates, one per tensor"""
    theta_lr: float = 0.005
    """learning rate of theta (Adam, or outer_optimizer for the C-MAML methods); maml and anil use
    it only in their pretraining; eta of bgd, metacog and metabgd"""
    mask_lr: float = 0.01
    """gamma_m, learning rate of the mask parameters, and of the inner rates of cmaml"""
    mask_init: str = "pytorch"
    """initial mask parameters of the sparse methods: pytorch (the layers' own initialisation),
    kaiming (wider and centred, as in few-shot learning), a number, or a range low:high (uniform)"""
    detection_threshold: float | None = 3.0
    """gamma; a new task is detected if adaptation lowers the loss by gamma or more; none: never"""
    modulation: float | None = 1000.0
    """lambda in 1 - exp(-lambda loss), the factor that scales each outer update; none: factor 1"""
    capacity: int = 101
    """number of stored batches after which theta is updated even if no new task is detected"""
    pairs: Literal["all", "one"] = "all"
    """(support, query) pairs of stored batches in an outer update of the C-MAML methods: the first
    half paired with the second, or one random pair (the paper's Algorithm 2)"""
    outer_optimizer: Literal["adam", "sgd"] = "adam"
    """optimiser of theta and m in the C-MAML methods; sgd: steps of theta_lr times the modulation
    (the paper's Algorithm 2)"""
    mask_theta: bool = False
    """multiply theta's gradient by the step sizes (the paper's App. A; not in its Algorithm 2)"""
    restart_now: bool = False
    """after a detection restart from theta on the same batch (Algorithm 2), not on the next one"""
    initial_std: float = 0.01
    """sigma_0, initial standard deviation of the weights of bgd, metacog and metabgd"""
    samples: int = 5
    """networks sampled at each timestep by bgd, metacog and metabgd"""
    pretrain_batch_size: int = 8
    """pretraining (fine-tuning, maml, anil): episodes per meta-step"""
    pretrain_second_order: bool = True
    """pretraining: differentiate through the inner gradients"""
    pretrain_steps: int = 100
    """pretraining: meta-steps per epoch, and validation batches per epoch"""
    pretrain_epochs: int = 1000
    """pretraining: largest number of epochs"""
    pretrain_patience: int = 10
    """pretraining: stop after more than this many epochs without a better validation accuracy"""
    pretrain_seed: int = 0
    """pretraining: its seed; all seeds share one pretrained network"""
    blocks: Blocks = "auto"
    """implementation of Conv4's blocks: native (C++, compiled for this CPU), pallas (a kernel in
    Pallas for the first block on GPUs) or xla (XLA's operations); auto: native on a CPU with a C++
    compiler, pallas on a GPU, else xla; results differ by rounding"""
    log_every: int = 100
    """timesteps per row of metrics"""
    seed: int = 0
    """first seed; it determines the stream (the same for all methods), the initialisation and the
    sampled networks"""
    seeds: int = 1
    """number of seeds to run in parallel: seed, seed + 1, ..."""

    def __post_init__(self):
        settings.check_types(self)
        if not 0.0 <= self.p <= 1.0:
            raise ConfigError(f"p must lie in [0, 1], got {self.p}")
        settings.check_choices(self, _CHOICES)
        settings.check_positive(self, _POSITIVE)
        if self.ways < 2:  # with one class there is nothing to learn
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
        # kaiming values are centred at zero: right for the scores of a mask, not for rates.
        rates = self.method == "sparse-relu-cmaml"
        settings.parse_init(self.mask_init, ("pytorch",) if rates else _INIT_WORDS)

    @property
    def intervals(self) -> int:
        """Rows of metrics after the first; the last may cover fewer timesteps."""
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
    """Read a mask initialisation: `pytorch`, `kaiming`, a number, or a range `low:high`."""
    return settings.parse_init(text, _INIT_WORDS)
