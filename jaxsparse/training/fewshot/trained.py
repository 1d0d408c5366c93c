"""A trained few-shot learner in use: adapt it to a few labelled images, then predict others."""

import dataclasses
import functools
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxsparse.checks import check_steps, described, is_array, is_traced
from jaxsparse.data.arrays import as_uint8
from jaxsparse.data.pictures import fit
from jaxsparse.inner import adapt
from jaxsparse.training.errors import RunError, trusting
from jaxsparse.training.fewshot.config import FewShotConfig, Parts, make_learner
from jaxsparse.training.fewshot.evaluation import at_precision
from jaxsparse.training.fewshot.tested import Finished, finished, load_tested
from jaxsparse.training.fewshot.weights import pretrained
from jaxsparse.updates import apply_gate

__all__ = ["Adapted", "TrainedLearner", "load_learner", "pretrained"]

Tree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedLearner:
    """What a few-shot run has learned, for one seed; see `load_learner`.

    Attributes:
      config: the configuration of the run.
      image_shape: (height, width, channels) that images are converted to.
      params: theta.
      mask: the mask parameters m.
    """

    config: FewShotConfig
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    params: Tree
    mask: Tree

    @functools.cached_property
    def _parts(self) -> Parts:
        return make_learner(self.config, self.image_shape)

    def adapt(self, images: Any, labels: Sequence[Any], steps: int | None = None) -> "Adapted":
        """Adapt to labelled images with the inner loop of the run.

        ``phi_0 = theta,  phi_{k+1} = phi_k - gate(m) * grad L(phi_k; images, labels)``

        Args:
          images: whole numbers from 0 to 255 or floats in [0, 1], [n, h, w, channels] or
            [n, h, w], of any size; or n images of Pillow.
          labels: n class names or numbers, at most as many different ones as the network has
            outputs. Names are sorted: the i-th gets output i.
          steps: K; default: the number of inner steps in the run's test.

        Returns:
          The adapted network.

        Raises:
          TypeError, ValueError: an argument is not as above, the numbers of images and labels
            differ, or there are too many classes.

        Examples:
          >>> adapted = load_learner("runs/fewshot/NAME").adapt(images, ["cat", "dog"])

        Source: von Oswald, Zhao et al. 2021, Eq. 8.
        """
        labels = _names(labels)
        prepared = self.prepared("images", images)
        classes = tuple(sorted(set(labels)))
        if len(labels) != len(prepared):
            raise ValueError(f"labels: got {len(labels)}, want {len(prepared)}, one for each image")
        if len(classes) > self.config.ways:
            raise ValueError(
                f"labels: got {len(classes)} classes, want at most {self.config.ways}, the outputs"
                " of the network"
            )
        numbers = np.array([classes.index(label) for label in labels], np.int32)
        count = self.config.test_inner_steps if steps is None else steps
        check_steps("steps", count)
        # A stochastic gate is sampled once, always with the same key.
        sizes = apply_gate(self._parts.gate, self.mask, jax.random.key(0))
        support = jnp.asarray(prepared), jnp.asarray(numbers)
        phi, inner = self._adapt(self.params, sizes, support, count)
        return Adapted(self, classes, phi, support, inner)

    @functools.cached_property
    def _adapt(self) -> Any:
        function = functools.partial(adapt, self._parts.loss_fn)
        return jax.jit(at_precision(self.config.precision, function), static_argnums=3)

    @functools.cached_property
    def _probabilities(self) -> Any:
        def probabilities(phi, support, query, inner, classes):
            # The labels of the query set are not read.
            task = support, (query, jnp.zeros(len(query), jnp.int32))
            loss_fn: Any = self._parts.loss_fn
            logits = loss_fn.logits(phi, task, inner)
            return jax.nn.softmax(logits[:, :classes])

        return jax.jit(at_precision(self.config.precision, probabilities), static_argnums=4)

    def prepared(self, name: str, images: Any) -> np.ndarray:
        """Images as the network takes them, float32 [n, *image_shape]; `name` is for errors."""
        if is_traced(images):
            raise TypeError(f"{name}: got a traced array; call this outside of jit")
        if isinstance(images, Image.Image) or not hasattr(images, "__len__") or not len(images):
            raise ValueError(f"{name}: got {described(images)}, want one or more images")
        if not isinstance(images[0], Image.Image) and np.ndim(images[0]) < 2:
            raise ValueError(f"{name}: got shape {np.shape(images)}, want [n, h, w] or more")
        if is_array(images) and np.ndim(images) == 3 and np.shape(images)[2] in (1, 3, 4):
            raise ValueError(
                f"{name}: got shape {np.shape(images)}, want [n, h, w, channels]; for one image, "
                f"use {name}[None]"
            )
        pixels = np.stack([_fitted(name, image, self.image_shape) for image in images])
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        return (pixels.astype(np.float32) / 255 - mean) / std


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """A network that was adapted to a few labelled images; see `TrainedLearner.adapt`.

    Attributes:
      learner: the learner that it was adapted from.
      classes: the labels, in the order of the columns of `predict`.
      params: the adapted parameters phi_K.
    """

    learner: TrainedLearner
    classes: tuple[Any, ...]
    params: Tree
    _support: Any
    _inner: Any

    def predict(self, images: Any) -> np.ndarray:
        """The probability of each class for each image.

        ``softmax(f(images; phi_K))``, over the classes that the network was adapted to.

        With transductive batch norm, the default of the runs, the statistics are those of all
        images given here. So pass the images of a task together, and of all classes.

        Args:
          images: as in `TrainedLearner.adapt`.

        Returns:
          float32 [n, classes]; each row sums to one.

        Examples:
          >>> best = adapted.predict(images).argmax(1)
          >>> [adapted.classes[i] for i in best]
        """
        query = jnp.asarray(self.learner.prepared("images", images))
        count = len(self.classes)
        function = self.learner._probabilities
        return np.asarray(function(self.params, self._support, query, self._inner, count))


def load_learner(run: str | PathLike[str], seed: int | None = None) -> TrainedLearner:
    """Load what a finished few-shot run has learned: its best theta and m.

    Args:
      run: the run's folder, a file of weights that `experiments.export` made, or a name of
        `jaxsparse.pretrained`: weights that come with jaxsparse.
      seed: which of the run's seeds; default: the first.

    Returns:
      A `TrainedLearner`.

    Raises:
      RunError: there is no finished few-shot run, it is damaged, or it has no such seed.

    Examples:
      >>> learner = load_learner("glyphs-5way-5shot-sparse-maml")
      >>> probabilities = learner.adapt(images, labels).predict(others)
    """
    if not isinstance(run, str | PathLike):
        raise TypeError(f"run must be a path or a name, got {described(run)}")
    return learner_of(finished(Path(run).expanduser()), seed)


def learner_of(run: Finished, seed: int | None = None) -> TrainedLearner:
    """What a finished run has learned; see `load_learner`."""
    place, images = run.place_of(seed), run.record.get("images")
    if images is None:
        raise RunError(f"{run.path} was made by an earlier version, which did not store its images")
    with trusting(run.record_path):
        height, width, channels = map(int, images["shape"])
        mean, std = (tuple(map(float, images[name])) for name in ("mean", "std"))
        if not len(mean) == len(std) == channels or not np.isfinite(mean + std).all() or 0 in std:
            raise ValueError(f"mean {mean} and std {std} for {channels} channels")
    shape = (height, width, channels)
    params, mask = jax.tree.map(lambda x: x[place], load_tested(run, shape).members[0])
    return TrainedLearner(run.config, shape, mean, std, params, mask)


def _names(labels: Any) -> list[Any]:
    """Labels as a list of Python's own numbers or strings."""
    try:
        array = np.asarray(labels)
    except (TypeError, ValueError):  # traced, or ragged
        array = np.empty((0, 0))
    if array.ndim != 1 or array.dtype.kind not in "iubU":
        raise TypeError(f"labels: got {described(labels)}, want n numbers or n names")
    mixed = array.dtype.kind == "U" and not all(isinstance(label, str) for label in labels)
    if mixed:
        raise TypeError("labels: got numbers and names, want one or the other")
    return array.tolist()


def _fitted(name: str, image: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """One image as uint8 of this shape."""
    if isinstance(image, Image.Image):
        return fit(image, shape)
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (3, 4)):
        raise ValueError(
            f"{name}: got one of shape {np.shape(image)}, want (h, w) or (h, w, 1 | 3 | 4)"
        )
    return fit(Image.fromarray(as_uint8(name, pixels)), shape)
