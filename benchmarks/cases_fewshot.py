"""Cases of few-shot learning: one meta-step on given arrays, and its operation count."""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class FewShotCase:
    """One meta-step of sparse-MAML with Conv4: K inner steps and one query gradient per task.

    The inner rate is small, so that the forms can be compared; it does not affect the timing. Inner
    steps amplify float32 rounding: after five of them at 84x84, PyTorch's meta-gradient differs
    from the one in float64 by 6% at a rate of 0.01, and by 1% at 0.001.
    """

    tasks: int = 4
    shots: int = 5
    image: tuple[int, int, int] = (28, 28, 1)
    width: int = 64
    inner_steps: int = 5
    ways: int = 5
    query_shots: int = 15
    inner_lr: float = 0.001
    outer_lr: float = 0.01
    momentum: float = 0.9
    seeds: int = 1

    def __post_init__(self) -> None:
        for name in ("tasks", "shots", "width", "inner_steps", "query_shots", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.ways < 2:
            raise ValueError(f"ways must be at least 2, got {self.ways}")
        if min(self.image[:2]) < 16 or self.image[2] < 1:
            got = "x".join(map(str, self.image))
            raise ValueError(f"images must be 16x16 or larger for Conv4's four poolings, got {got}")

    @property
    def name(self) -> str:
        h, w, c = self.image
        plural = "s" if self.tasks > 1 else ""
        size = f"{self.tasks} task{plural}, {self.ways}-way {self.shots}-shot, {h}x{w}x{c}"
        seeds = f", {self.seeds} seeds" if self.seeds > 1 else ""
        return f"{size}, width {self.width}, K = {self.inner_steps}{seeds}"

    @property
    def tasks_taken(self) -> int:
        """Tasks of one meta-step, for rates per second."""
        return self.seeds * self.tasks

    @property
    def inner_steps_taken(self) -> int:
        """Inner steps of all tasks in one meta-step, for the time per inner step."""
        return self.tasks_taken * self.inner_steps

    @property
    def images_seen(self) -> int:
        """Images in all losses that are differentiated in one meta-step."""
        per_task = self.inner_steps * self.shots + self.query_shots
        return self.tasks_taken * self.ways * per_task

    def flops(self) -> float:
        """Floating-point operations of one meta-step by direct convolution.

        The forward pass, the kernel gradient and (except in the first layer) the input gradient
        each cost 2 x 9 c o per output position. Norms, pooling and optimisers are not counted.
        """
        h, w, inputs = self.image
        total = 0.0
        for layer in range(4):
            passes = 2 if layer == 0 else 3
            total += passes * 2 * 9 * inputs * self.width * h * w
            h, w, inputs = h // 2, w // 2, self.width
        total += 3 * 2 * h * w * inputs * self.ways
        return total * self.images_seen

    def draw(self, seed: int = 0) -> dict[str, Any]:
        """The arrays that every form starts from.

        They are "params" and "mask" (flat by name), "support" and "query". Images are one random
        prototype per class plus noise, so that the tasks can be learned.
        """
        random = np.random.default_rng(seed)
        h, w, inputs = self.image
        params: dict[str, np.ndarray] = {}
        for layer in range(1, 5):
            bound = 1 / math.sqrt(9 * inputs)
            params[f"conv{layer}/kernel"] = random.uniform(
                -bound, bound, (3, 3, inputs, self.width)
            )
            params[f"norm{layer}/scale"] = np.ones(self.width)
            params[f"norm{layer}/bias"] = np.zeros(self.width)
            inputs, h, w = self.width, h // 2, w // 2
        bound = 1 / math.sqrt(h * w * inputs)
        params["head/kernel"] = random.uniform(-bound, bound, (h * w * inputs, self.ways))
        return self._with_mask(params, random) | self._tasks(random)

    def _with_mask(
        self, params: dict[str, np.ndarray], random: np.random.Generator
    ) -> dict[str, Any]:
        mask = {name: random.normal(0.0, 1.0, p.shape) for name, p in params.items()}
        return {
            tree: {name: x.astype(np.float32) for name, x in leaves.items()}
            for tree, leaves in {"params": params, "mask": mask}.items()
        }

    def _tasks(self, random: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        prototypes = random.normal(0.0, 1.0, (self.tasks, 1, self.ways, *self.image))
        out = {}
        for split, shots in (("support", self.shots), ("query", self.query_shots)):
            noise = random.normal(0.0, 1.0, (self.tasks, shots, self.ways, *self.image))
            images = (prototypes + noise).reshape(self.tasks, -1, *self.image).astype(np.float32)
            labels = np.tile(np.arange(self.ways, dtype=np.int32), (self.tasks, shots))
            out[split] = (images, labels)
        return out


CPU_CASES = (
    FewShotCase(tasks=2, image=(84, 84, 3)),
    FewShotCase(),
    FewShotCase(shots=1),
)
GPU_CASES = tuple(
    FewShotCase(tasks=tasks, image=(84, 84, 3), inner_steps=35) for tasks in (2, 4, 8, 16, 32, 64)
)
