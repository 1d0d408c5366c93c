"""One seed of a stream of tasks in PyTorch, as the public code of La-MAML handles and learns it.

Lists and loops as there: the memory is a list of examples, shuffled before each pick; an inner step
is an `autograd.grad`; each glance ends in one `backward`. What that code computes and drops (a
clamp of the inner gradients) is left out.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from benchmarks.glance_peers import BinaryStep, mlp_loss
from benchmarks.stream import Draws, Times, task_images
from jaxsparse.data import streams

TEST_BATCH = 1000


class PeerStream:
    """A learner of (sparse-)La-MAML and its memory; see `train_task`."""

    name = "PyTorch"

    def __init__(self, config: Any, params: dict[str, np.ndarray], seed: int = 0):
        """Start.

        Args:
          config: a `ContinualConfig` of the rotations' kind.
          params: kernels [in, out] and biases by name, layer by layer.
          seed: of the orders, of the memory and of what is replayed.
        """
        self.config = config
        self.names = sorted(params, key=_place)
        self.params, self.mask = (
            [torch.tensor(np.ascontiguousarray(x.T), requires_grad=True) for x in leaves]
            for leaves in (
                [params[n] for n in self.names],
                [np.full_like(params[n], config.inner_lr) for n in self.names],
            )
        )
        self.memory: list[tuple[np.ndarray, int]] = []
        self.age = 0
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def train_task(
        self, images: Any, labels: Any, draws: Sequence[Draws | None] | None = None
    ) -> None:
        """Learn one task, batch by batch.

        Args:
          images: float32 [n, inputs].
          labels: int64 [n].
          draws: what is drawn for each batch of the rows as they come; None: the rows are shuffled
            and everything is drawn here.
        """
        if draws is None:
            order = torch.randperm(len(images), generator=self.generator)
            images, labels = images[order], labels[order]
            draws = [None] * (len(images) // self.config.batch_size)
        for number, drawn in enumerate(draws):
            rows = slice(number * self.config.batch_size, (number + 1) * self.config.batch_size)
            for glance in range(self.config.glances):
                self._glance(images[rows], labels[rows], glance, drawn)

    def accuracy(self, images: Any, labels: Any) -> float:
        """The share of test images that the slow weights get right."""
        hits = 0
        with torch.no_grad():
            for start in range(0, len(images), TEST_BATCH):
                x = images[start : start + TEST_BATCH]
                for i in range(0, len(self.params) - 2, 2):
                    x = functional.relu(functional.linear(x, self.params[i], self.params[i + 1]))
                logits = functional.linear(x, self.params[-2], self.params[-1])
                hits += int((logits.argmax(1) == labels[start : start + TEST_BATCH]).sum())
        return hits / len(images)

    def _glance(self, images: Any, labels: Any, glance: int, drawn: Draws | None) -> None:
        if drawn is None:
            order = torch.randperm(len(images), generator=self.generator)
        else:
            order = torch.tensor(drawn.orders[glance])
        images, labels = images[order], labels[order]
        meta = self._meta_batch(images, labels, None if drawn is None else drawn.picks[glance])
        for x in (*self.params, *self.mask):
            x.grad = None
        phi, losses = self.params, []
        for k in range(len(images)):
            loss = mlp_loss(phi, images[k : k + 1], labels[k : k + 1])
            gradients = torch.autograd.grad(loss, phi, create_graph=False)
            phi = [p - self._size(m) * g for p, m, g in zip(phi, self.mask, gradients, strict=True)]
            if glance == 0:
                self._remember(images[k], labels[k], None if drawn is None else drawn.slots[k])
            losses.append(mlp_loss(phi, *meta))
        (sum(losses) / len(losses)).backward()
        self._update()

    def _update(self) -> None:
        for tree in (self.params, self.mask):
            torch.nn.utils.clip_grad_norm_(tree, self.config.clip_norm)
        with torch.no_grad():
            for m in self.mask:
                m -= self.config.mask_lr * m.grad
            for p, m in zip(self.params, self.mask, strict=True):
                p -= self._size(m) * p.grad

    def _size(self, m: Any) -> Any:
        if self.config.method == "lamaml":
            return functional.relu(m)
        return self.config.inner_lr * BinaryStep.apply(m)

    def _meta_batch(self, images: Any, labels: Any, picks: Sequence[int] | None) -> tuple[Any, Any]:
        """The replayed examples, then the batch, stacked anew."""
        if picks is None:
            picks, places = [], list(range(len(self.memory)))
            for _ in range(min(self.config.replay_batch_size, len(self.memory))):
                self.random.shuffle(places)
                picks.append(places[0])
        rows = [self.memory[i] for i in picks]
        rows += zip(images.numpy(), labels.tolist(), strict=True)
        stacked, classes = zip(*rows, strict=True)
        return torch.from_numpy(np.array(stacked)), torch.tensor(classes)

    def _remember(self, image: Any, label: Any, slot: int | None) -> None:
        self.age += 1
        example = (image.numpy(), int(label))
        if len(self.memory) < self.config.memories:
            self.memory.append(example)
            return
        slot = self.random.randint(0, self.age) if slot is None else slot
        if slot < self.config.memories:
            self.memory[slot] = example

    def result(self) -> dict[str, dict[str, np.ndarray]]:
        """The parameters and masks now, in our layout."""
        return {
            tree: {n: x.detach().numpy().T.copy() for n, x in zip(self.names, leaves, strict=True)}
            for tree, leaves in (("params", self.params), ("mask", self.mask))
        }


def _place(name: str) -> tuple[bool, str, bool]:
    """Sorts hidden layers before the head, kernels before biases."""
    layer, leaf = name.split("/")
    return layer == "head", layer, leaf == "bias"


def peer_stream(peer: PeerStream, data: Sequence[Any], tasks: int) -> Times:
    """PyTorch's times: of all tasks, or of the first ones, multiplied by the counts.

    Args:
      peer: a learner at its start.
      data: for each task ((images, labels) to learn, (images, labels) to test).
      tasks: those that are learned; passes over all test sets are before and after each of them
        when these are all tasks, else before each.

    Returns:
      The times of the whole stream.
    """
    everything = tasks == len(data)
    seconds: dict[str, list[float]] = {"train": [], "test": []}
    accuracy = []

    def timed(part: str, function: Callable, *args: Any) -> Any:
        begun = time.perf_counter()
        out = function(*args)
        seconds[part].append(time.perf_counter() - begun)
        return out

    def test() -> list[float]:
        return timed("test", lambda: [peer.accuracy(*test) for _, test in data])

    for task, (train, _) in enumerate(data[:tasks]):
        before = test()
        accuracy += [] if task and everything else [before]
        timed("train", peer.train_task, *train)
        if everything:
            accuracy.append(test())
    if everything:
        return Times(sum(seconds["train"]), sum(seconds["test"]), np.array(accuracy))
    first, later = seconds["train"][0], statistics.mean(seconds["train"][1:])
    train_s = first + (len(data) - 1) * later
    test_s = 2 * len(data) * statistics.mean(seconds["test"])
    return Times(train_s, test_s, np.array(accuracy))


def choose_threads(
    counts: Sequence[int], learner: Callable[[], PeerStream], rows: Any, batches: int = 10
) -> int:
    """Set PyTorch's number of threads to the fastest one on a task's first batches.

    Args:
      counts: what to choose from.
      learner: makes a new learner.
      rows: (images, labels) of a task.
      batches: to learn with each number, after one batch to warm up.

    Returns:
      The number.
    """
    seconds = {}
    for count in dict.fromkeys(counts):
        torch.set_num_threads(count)
        peer = learner()
        size = peer.config.batch_size
        peer.train_task(*(x[:size] for x in rows))
        begun = time.perf_counter()
        peer.train_task(*(x[: batches * size] for x in rows))
        seconds[count] = time.perf_counter() - begun
    best = min(seconds, key=lambda count: seconds[count])
    torch.set_num_threads(best)
    return best


def float_tasks(config: Any, stream: Any) -> list[Any]:
    """Every task's images and labels as PyTorch is given them, in memory before the clock runs."""
    rng = np.random.default_rng(0)
    available, out = len(stream.train.labels), []
    for task in range(config.tasks):
        chosen = rng.choice(available, config.samples_per_task, replace=False)
        pairs = (task_images(stream, task, chosen), streams.test_rows(stream, jnp.int32(task)))
        out.append(
            [(to_float(x), torch.tensor(np.asarray(y), dtype=torch.int64)) for x, y in pairs]
        )
    return out


def to_float(images: Any) -> Any:
    """[n, inputs] from 0 to 1, as a PyTorch tensor."""
    images = np.asarray(images)
    return torch.tensor(images.reshape(len(images), -1) / np.float32(255))
