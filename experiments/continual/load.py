"""Load the stream of a configuration, and check that the run is possible and fits into memory."""

import jax

from jaxsparse import data
from jaxsparse.data import TaskStream, streams
from jaxsparse.training import ConfigError, memory
from jaxsparse.training.continual import ContinualConfig, default_rates, make_program


def load_stream(config: ContinualConfig) -> TaskStream:
    """The stream of a configuration with its test images, checked."""
    # The accuracy matrices grow fastest with the tasks: check them before making the tasks.
    matrices = 4 * config.seeds * (config.tasks + 1) * config.tasks
    memory.check_fits(
        matrices, lambda: matrices, f"accuracies of tasks {config.tasks} for seeds {config.seeds}"
    )
    train = data.load_labelled(config.data, "train", config.data_dir)
    if config.validation:
        train, test = streams.hold_out(train)
    else:
        test = data.load_labelled(config.data, "test", config.data_dir)
    if config.stream == "split-cifar10":
        stream = streams.split(train, test)
    else:
        build = streams.rotations if config.stream == "rotations" else streams.permutations
        stream = build(train, test, config.tasks, config.data_seed)
    _check(config, stream)
    check_size(config, stream, config.seeds)
    return stream


def check_size(config: ContinualConfig, stream: TaskStream, runs: int) -> None:
    """Refuse runs with too many steps, and runs that do not fit into memory."""
    program = make_program(config, stream)
    steps = program.batches_per_task * stream.num_tasks
    if steps >= 2**31:
        raise ConfigError(f"batches of all tasks and epochs must be below 2^31, got {steps}")
    rows = config.memories + 4 * config.replay_batch_size
    rows_bytes = rows * stream.train.images[:1].nbytes

    def state() -> int:
        key = jax.random.key(config.seed)
        kept = jax.eval_shape(program.init, key, default_rates(config), stream)
        return memory.bytes_of((kept, jax.eval_shape(program.schedule, key, stream)))

    arrays = 8 * steps * config.batch_size + 4 * (stream.num_tasks + 1) ** 2
    memory.check_fits(
        runs * (400 * (config.width + 1000) ** 2 + 2 * rows_bytes + arrays),
        lambda: runs * (state() + rows_bytes),
        f"runs {runs} of width {config.width} with memories {config.memories} and"
        f" replay_batch_size {config.replay_batch_size}",
    )


def _check(config: ContinualConfig, stream: TaskStream) -> None:
    """Refuse a configuration that does not match the images."""
    channels = stream.train.images.shape[3]
    if config.augment and channels != 3:
        raise ConfigError(f"augment needs images with 3 channels, {config.data} has {channels}")
