"""The configuration of a few-shot run and what it stands for."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import optax
from jax.sharding import Mesh

from jaxsparse import gates, losses, nn
from jaxsparse.gates import Gate
from jaxsparse.learner import Learner
from jaxsparse.learners import maml
from jaxsparse.nn.blocks import BLOCKS, Blocks
from jaxsparse.training import settings
from jaxsparse.training.errors import ConfigError

Method = Literal[
    "sparse-maml",
    "sparse-relu-maml",
    "sparse-maml-plus",
    "fomaml",
    "maml",
    "anil",
    "boil",
    "meta-sgd",
]
Precision = Literal["float32", "tensorfloat32", "bfloat16"]
Dataset = Literal[
    "glyphs",
    "omniglot",
    "omniglot-1200",
    "mini_imagenet",
    "tiered_imagenet",
    "cub",
    "cars",
    "cifar_fs",
    "fc100",
    "folder",
]


@dataclasses.dataclass(frozen=True)
class FewShotConfig:
    """A few-shot run: everything that decides its numbers, and nothing else."""

    method: Method = "sparse-maml"
    """what decides which parameters the inner loop moves, and how far; all but maml are of first
    order unless --second-order is given"""
    dataset: Dataset = "glyphs"
    """glyphs is embedded; folder is a tree train/ val/ test/ of class folders under --data-dir; the
    others are read through TensorFlow Datasets or from its manual folder (omniglot: evaluation
    alphabets; -1200: random characters; cifar_fs and fc100: CIFAR-100)"""
    data_dir: str | None = None
    """where the data lies; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    image_size: int | None = None
    """height and width of the images of --dataset folder, in pixels"""
    ways: int = 5
    """classes per task"""
    shots: int = 5
    """support images per class"""
    query_shots: int = 15
    """query images per class"""
    width: int = 64
    """filters of each of Conv4's layers"""
    bias: bool = True
    """whether the network has biases: the head's, and the convolutions', which the norms cancel"""
    inner_lr: float = 0.1
    """alpha, the inner step size"""
    inner_steps: int = 5
    """K in training, inner steps"""
    test_inner_steps: int = 10
    """K in validation and test, inner steps"""
    theta_lr: float = 0.001
    """outer learning rate of theta (Adam)"""
    mask_lr: float = 0.0075
    """gamma_m, outer learning rate of the mask parameters; 0 freezes the mask as drawn"""
    mask_optimizer: Literal["adam", "nesterov"] = "adam"
    """nesterov is SGD with Nesterov momentum 0.9"""
    mask_init: str = "auto"
    """kaiming, a constant, or a range low:high; auto: kaiming for binary gates, inner_lr else"""
    initial_sparsity: float = 0.5
    """share of frozen parameters at the start, with --mask-init kaiming"""
    embedding: int = 1600
    """E, length of the code from which sparse-maml-plus generates its mask"""
    second_order: bool = False
    """differentiate through the inner gradients; maml always does; anil, boil and meta-sgd only
    with this flag, although their papers do"""
    clip: float | None = None
    """clip the meta-gradient of theta elementwise to [-clip, clip]"""
    meta_batch_size: int = 4
    """tasks per meta-step"""
    epochs: int = 20
    """epochs; each ends with a validation"""
    steps_per_epoch: int = 100
    """meta-steps per epoch"""
    schedule: Literal["constant", "cosine"] = "constant"
    """both outer learning rates: constant, or falling to 0 along a half cosine"""
    val_tasks: int = 300
    """validation tasks per epoch; the epoch of the best mean accuracy is the one tested"""
    test_tasks: int = 600
    """test tasks"""
    precision: Precision = "float32"
    """of matrix products, in JAX's words: the other two are TensorFloat-32 on NVIDIA GPUs, and
    bfloat16 (in three passes, in one) on TPUs; on the CPU all are float32"""
    blocks: Blocks = "auto"
    """what computes Conv4's blocks: native, C++ compiled for this machine's CPU, or xla, XLA's
    operations; auto: native on the CPU where there is a C++ compiler. They round differently"""
    seed: int = 0
    """first seed: data order, initialisation and tasks all follow from it"""
    seeds: int = 1
    """number of seeds trained side by side: seed, seed + 1, ..."""

    def __post_init__(self):
        settings.check_types(self)
        settings.check_positive(self, _POSITIVE)
        settings.check_not_negative(self, ("inner_lr", "theta_lr", "mask_lr"))
        if not 0.0 <= self.initial_sparsity <= 1.0:
            raise ConfigError(f"initial_sparsity must lie in [0, 1], got {self.initial_sparsity}")
        if self.ways < 2:
            raise ConfigError(f"ways must be 2 or more, got {self.ways}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip must be above 0, got {self.clip}")
        settings.check_seeds(self, ("seed",))
        settings.check_choices(self, _CHOICES)
        # A rate may not be drawn about zero, as the scores of a binary mask are.
        rates = self.method in ("sparse-relu-maml", "meta-sgd")
        settings.parse_init(self.mask_init, ("auto",) if rates else ("kaiming", "auto"))


_POSITIVE = (
    *("ways", "shots", "query_shots", "width", "inner_steps", "test_inner_steps", "embedding"),
    *("meta_batch_size", "epochs", "steps_per_epoch", "val_tasks", "test_tasks", "seeds"),
)
_CHOICES: dict[str, tuple[str, ...]] = {
    "method": Method.__args__,  # type: ignore[attr-defined]
    "dataset": Dataset.__args__,  # type: ignore[attr-defined]
    "mask_optimizer": ("adam", "nesterov"),
    "schedule": ("constant", "cosine"),
    "precision": Precision.__args__,  # type: ignore[attr-defined]
    "blocks": BLOCKS,
}


class Parts(NamedTuple):
    """What a configuration stands for.

    Attributes:
      model: the network, a `Model`.
      loss_fn: `(params, batch) -> (scalar, dict of scalars)`.
      gate: what tells the methods apart.
      learner: the meta-step, a `jaxsparse.Learner`.
    """

    model: nn.Model
    loss_fn: Callable
    gate: Gate
    learner: Learner


def make_learner(
    config: FewShotConfig, image_shape: tuple[int, int, int], mesh: Mesh | None = None
) -> Parts:
    """Build the model, loss, gate and meta-step that `config` names.

    Args:
      config: the run's configuration.
      image_shape: (height, width, channels) of the data.
      mesh: devices to divide the tasks of a batch among; None: one device.

    Returns:
      `Parts`.

    Raises:
      ConfigError: images too small for the network, or blocks that cannot be had here.

    Example:
      >>> learner = make_learner(FewShotConfig(width=8), (28, 28, 1)).learner
    """
    try:
        model = nn.conv4(
            ways=config.ways,
            width=config.width,
            image_shape=image_shape,
            use_bias=config.bias,
            blocks=config.blocks,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    loss_fn, gate = losses.cross_entropy(model), make_gate(config)
    clip = optax.identity() if config.clip is None else optax.clip(config.clip)
    mask_rate = _rate(config, config.mask_lr)
    learner = maml(
        loss_fn,
        gate,
        inner_steps=config.inner_steps,
        theta_optimizer=optax.chain(clip, optax.adam(_rate(config, config.theta_lr))),
        mask_optimizer=(
            optax.adam(mask_rate)
            if config.mask_optimizer == "adam"
            else optax.sgd(mask_rate, momentum=0.9, nesterov=True)
        ),
        second_order=config.second_order or config.method == "maml",
        mesh=mesh,
    )
    return Parts(model, loss_fn, gate, learner)


def make_gate(config: FewShotConfig) -> Gate:
    """The gate of `config.method`: an algorithm is a gate.

    Args:
      config: the run's configuration.

    Returns:
      A `Gate`.

    Example:
      >>> gate = make_gate(FewShotConfig(method="anil"))
    """
    alpha, sparse = config.inner_lr, config.initial_sparsity
    init = settings.parse_init(config.mask_init)
    rate_init = alpha if init == "auto" else init
    binary_init = "kaiming" if init == "auto" else init
    builders: dict[str, Callable[[], Gate]] = {
        "sparse-maml": lambda: gates.binary(alpha, init=binary_init, initial_sparsity=sparse),
        "sparse-relu-maml": lambda: gates.relu(rate_init),
        "sparse-maml-plus": lambda: gates.generated(
            alpha, embedding=config.embedding, initial_sparsity=sparse
        ),
        "fomaml": lambda: gates.constant(alpha),
        "maml": lambda: gates.constant(alpha),
        "anil": lambda: gates.head_only(alpha),
        "boil": lambda: gates.body_only(alpha),
        "meta-sgd": lambda: gates.linear(rate_init),
    }
    return builders[config.method]()


def _rate(config, rate):
    if config.schedule == "constant":
        return rate
    return optax.cosine_decay_schedule(rate, config.epochs * config.steps_per_epoch)
