"""The configuration of a few-shot run, and the learner it describes."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import optax
from jax.sharding import Mesh

from jaxsparse import gates, losses, nn
from jaxsparse.gates import Gate
from jaxsparse.learner import Learner
from jaxsparse.learners import maml
from jaxsparse.maml import TaskLoop
from jaxsparse.nn.blocks import BLOCKS, Blocks
from jaxsparse.nn.model import is_norm
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
Network = Literal["conv4", "resnet12", "resnet12-large"]
# The channels of the four blocks of ResNet-12: the paper's small and large networks.
CHANNELS = {"resnet12": (64, 128, 256, 512), "resnet12-large": (64, 160, 320, 640)}


@dataclasses.dataclass(frozen=True)
class FewShotConfig:
    """A few-shot run: all settings that its results depend on."""

    method: Method = "sparse-maml"
    """the algorithm; all except maml are first order unless --second-order is given"""
    dataset: Dataset = "glyphs"
    """glyphs needs no download; folder reads train/, val/ and test/ with one folder per class under
    --data-dir; the others are read through TensorFlow Datasets or from its manual folder; omniglot
    tests on unseen alphabets, omniglot-1200 on randomly chosen characters"""
    data_dir: str | None = None
    """folder of the data; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"""
    image_size: int | None = None
    """height and width of the images of --dataset folder, in pixels"""
    ways: int = 5
    """classes per task"""
    shots: int = 5
    """support images per class"""
    query_shots: int = 15
    """query images per class"""
    network: Network = "conv4"
    """the network; resnet12 has 64, 128, 256 and 512 channels, resnet12-large 64, 160, 320, 640"""
    width: int = 64
    """filters per Conv4 layer"""
    channels: tuple[int, ...] | None = None
    """channels of ResNet-12's four blocks, if other than the network's"""
    bias: bool = True
    """use biases in the head and in Conv4's convolutions (where batch norm cancels them)"""
    batch_norm: losses.BatchNorm = "transductive"
    """statistics that normalise the query images: their own (transductive), those of the support
    set after the inner loop, or a running average over the inner steps"""
    adapt_norm: bool = True
    """adapt the scales and biases of batch norm in the inner loop"""
    inner_lr: float = 0.1
    """alpha, the inner step size"""
    inner_steps: int = 5
    """K, inner steps in training"""
    test_inner_steps: int = 10
    """K, inner steps in validation and test"""
    theta_lr: float = 0.001
    """outer learning rate of theta (Adam)"""
    mask_lr: float = 0.0075
    """gamma_m, outer learning rate of the mask parameters; 0 keeps the initial mask"""
    mask_optimizer: Literal["adam", "nesterov"] = "adam"
    """optimiser of the mask parameters; nesterov is SGD with Nesterov momentum 0.9"""
    mask_init: str = "auto"
    """initial mask parameters: kaiming, a number, or a range low:high (uniform); auto: kaiming for
    sparse-maml, inner_lr for sparse-relu-maml and meta-sgd"""
    initial_sparsity: float = 0.5
    """fraction of parameters that start frozen (sparse-maml with --mask-init kaiming,
    sparse-maml-plus)"""
    embedding: int = 1600
    """E, size of the embedding from which sparse-maml-plus generates its mask"""
    second_order: bool = False
    """differentiate through the inner gradients; maml always does; the papers of anil, boil and
    meta-sgd do, but here these methods do so only with this flag"""
    theta_from: str | None = None
    """folder of a finished run; training starts from the theta that it tested"""
    clip: float | None = None
    """clip each entry of both meta-gradients to [-clip, clip]; none: no clipping"""
    meta_batch_size: int = 4
    """tasks per meta-step"""
    epochs: int = 20
    """training epochs; each ends with a validation"""
    steps_per_epoch: int = 100
    """meta-steps per epoch"""
    schedule: Literal["constant", "cosine"] = "constant"
    """schedule of both outer learning rates; cosine: cosine decay to 0 over the whole training"""
    ensemble: int = 1
    """also test an ensemble: the mean prediction of this many of the best epochs"""
    val_tasks: int = 300
    """validation tasks per epoch; the epoch with the best mean accuracy is tested"""
    test_tasks: int = 600
    """test tasks"""
    precision: Precision = "float32"
    """precision of matrix products (jax.default_matmul_precision); the CPU always uses float32; on
    NVIDIA GPUs the other two both mean TensorFloat-32; on TPUs they mean three bfloat16 passes and
    one"""
    blocks: Blocks = "auto"
    """implementation of the convolutions: native (C++, compiled for this CPU), pallas (a kernel in
    Pallas for the first block on GPUs) or xla (XLA's operations); auto: native on a CPU with a C++
    compiler, pallas on a GPU, else xla; results differ by rounding"""
    task_loop: TaskLoop = "auto"
    """adapt to all tasks of a batch in parallel (vmap), to one after the other (scan), or to this
    many in parallel, one such group after the other, which needs less memory than vmap; auto: scan
    on the CPU, else vmap; results differ by rounding"""
    seed: int = 0
    """first seed; it determines the initialisation and all tasks"""
    seeds: int = 1
    """number of seeds: seed, seed + 1, ...; on the CPU one after the other, on a GPU together"""

    def __post_init__(self):
        if isinstance(self.channels, list):  # as JSON has it
            object.__setattr__(self, "channels", tuple(self.channels))
        settings.check_types(self)
        settings.check_positive(self, _POSITIVE)
        settings.check_not_negative(self, ("inner_lr", "theta_lr", "mask_lr"))
        if not 0.0 <= self.initial_sparsity <= 1.0:
            raise ConfigError(f"initial_sparsity must lie in [0, 1], got {self.initial_sparsity}")
        if self.ways < 2:
            raise ConfigError(f"ways must be 2 or more, got {self.ways}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip must be above 0, got {self.clip}")
        if self.channels is not None and (len(self.channels) != 4 or min(self.channels) < 1):
            got = " ".join(map(str, self.channels)) or "none"
            raise ConfigError(f"channels must be four numbers of 1 or more, got {got}")
        if self.task_loop not in ("auto", "vmap", "scan") and not _is_count(self.task_loop):
            got = f"got {self.task_loop!r}"
            raise ConfigError(f"task_loop must be auto, vmap, scan or a number of tasks, {got}")
        if self.ensemble > self.epochs:
            raise ConfigError(
                f"ensemble must be at most epochs, {self.epochs}, got {self.ensemble}"
            )
        settings.check_seeds(self, ("seed",))
        settings.check_choices(self, _CHOICES)
        # kaiming values are centred at zero: right for the scores of a mask, not for rates.
        rates = self.method in ("sparse-relu-maml", "meta-sgd")
        settings.parse_init(self.mask_init, ("auto",) if rates else ("kaiming", "auto"))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


_POSITIVE = (
    *("ways", "shots", "query_shots", "width", "inner_steps", "test_inner_steps", "embedding"),
    *("meta_batch_size", "epochs", "steps_per_epoch", "val_tasks", "test_tasks", "seeds"),
    "ensemble",
)
_CHOICES: dict[str, tuple[str, ...]] = {
    "method": Method.__args__,  # type: ignore[attr-defined]
    "dataset": Dataset.__args__,  # type: ignore[attr-defined]
    "network": Network.__args__,  # type: ignore[attr-defined]
    "batch_norm": losses.BatchNorm.__args__,  # type: ignore[attr-defined]
    "mask_optimizer": ("adam", "nesterov"),
    "schedule": ("constant", "cosine"),
    "precision": Precision.__args__,  # type: ignore[attr-defined]
    "blocks": BLOCKS,
}


class Parts(NamedTuple):
    """The model, loss, gate and learner of a configuration; see `make_learner`.

    Attributes:
      model: the network, a `Model`.
      loss_fn: `(params, batch) -> (scalar, dict of scalars)`.
      gate: the gate of the method.
      learner: the meta-step, a `jaxsparse.Learner`.
    """

    model: nn.Model
    loss_fn: Callable
    gate: Gate
    learner: Learner


def make_learner(
    config: FewShotConfig, image_shape: tuple[int, int, int], mesh: Mesh | None = None
) -> Parts:
    """Build the model, loss, gate and learner of `config`.

    Args:
      config: the run's configuration.
      image_shape: (height, width, channels) of the data.
      mesh: devices among which the tasks of a batch are divided; None: one device.

    Returns:
      `Parts`.

    Raises:
      ConfigError: the images are too small for the network, or this machine cannot run
        `config.blocks`.

    Examples:
      >>> learner = make_learner(FewShotConfig(width=8), (28, 28, 1)).learner
    """
    model = make_network(config, image_shape)
    loss_fn, gate = losses.cross_entropy(model, config.batch_norm), make_gate(config)
    clip = optax.identity() if config.clip is None else optax.clip(config.clip)
    mask_rate = _rate(config, config.mask_lr)
    mask_optimizer = (
        optax.adam(mask_rate)
        if config.mask_optimizer == "adam"
        else optax.sgd(mask_rate, momentum=0.9, nesterov=True)
    )
    learner = maml(
        loss_fn,
        gate,
        inner_steps=config.inner_steps,
        theta_optimizer=optax.chain(clip, optax.adam(_rate(config, config.theta_lr))),
        mask_optimizer=_clipped(mask_optimizer, clip),
        second_order=config.second_order or config.method == "maml",
        task_loop=config.task_loop,
        mesh=mesh,
    )
    return Parts(model, loss_fn, gate, learner)


def make_network(config: FewShotConfig, image_shape: tuple[int, int, int]) -> nn.Model:
    """The network of `config` for images of this shape (height, width, channels).

    Raises:
      ConfigError: the images are too small, or this machine cannot run `config.blocks`.
    """
    try:
        if config.network == "conv4":
            return nn.conv4(config.ways, config.width, image_shape, config.bias, config.blocks)
        channels = config.channels or CHANNELS[config.network]
        return nn.resnet12(config.ways, channels, image_shape, config.bias, config.blocks)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_gate(config: FewShotConfig) -> Gate:
    """The gate of `config.method`.

    Args:
      config: the run's configuration.

    Returns:
      A `Gate`.

    Examples:
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
        "boil": lambda: gates.all_but_head(alpha),
        "meta-sgd": lambda: gates.linear(rate_init),
    }
    gate = builders[config.method]()
    return gate if config.adapt_norm else gates.for_part(gate, lambda name: not is_norm(name))


def _clipped(
    optimizer: optax.GradientTransformation, clip: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`optimizer` of clipped gradients, with the state of `optimizer` alone.

    `optax.chain` would nest the state, and checkpoints of earlier versions would not fit.
    """

    def update(gradient, state, params=None):
        gradient, _ = clip.update(gradient, clip.init(params), params)
        return optimizer.update(gradient, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def _rate(config, rate):
    if config.schedule == "constant":
        return rate
    return optax.cosine_decay_schedule(rate, config.epochs * config.steps_per_epoch)
