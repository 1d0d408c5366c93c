"""The figures of the papers that runs are compared with, in percent."""

from typing import NamedTuple


class Published(NamedTuple):
    """A published figure.

    Attributes:
      mean: in percent.
      std: over seeds; None where none was given.
      note: what has to be known of it.
    """

    mean: float
    std: float | None = None
    note: str = ""


# Table S5: the share of parameters that do not move, at the end of the stream.
TABLE_S5 = {
    ("rotations", "lamaml"): {
        "total": Published(20.47),
        "dense1/kernel": Published(16), "dense2/kernel": Published(45),
        "head/kernel": Published(96), "dense1/bias": Published(95),
        "dense2/bias": Published(94), "head/bias": Published(100)},
    ("rotations", "sparse-lamaml"): {
        "total": Published(7.13),
        "dense1/kernel": Published(5), "dense2/kernel": Published(19),
        "head/kernel": Published(80), "dense1/bias": Published(67),
        "dense2/bias": Published(54), "head/bias": Published(100)},
    ("permutations", "lamaml"): {
        "total": Published(24.81),
        "dense1/kernel": Published(20), "dense2/kernel": Published(53),
        "head/kernel": Published(97), "dense1/bias": Published(99),
        "dense2/bias": Published(93), "head/bias": Published(100)},
    ("permutations", "sparse-lamaml"): {
        "total": Published(16.17, note="the layers printed beside it imply 10.8 to 11.8"),
        "dense1/kernel": Published(8), "dense2/kernel": Published(29),
        "head/kernel": Published(78), "dense1/bias": Published(100),
        "dense2/bias": Published(87), "head/bias": Published(100)},
    ("many-permutations", "lamaml"): {
        "total": Published(46.53),
        "dense1/kernel": Published(45), "dense2/kernel": Published(56),
        "head/kernel": Published(98), "dense1/bias": Published(100),
        "dense2/bias": Published(98), "head/bias": Published(100)},
    ("many-permutations", "sparse-lamaml"): {
        "total": Published(13.08),
        "dense1/kernel": Published(10), "dense2/kernel": Published(29),
        "head/kernel": Published(87), "dense1/bias": Published(100),
        "dense2/bias": Published(93), "head/bias": Published(100)},
}  # fmt: skip

# Table S6: alpha_0, gamma_m, glances.
TABLE_S6 = {
    ("rotations", "lamaml"): (0.15, 0.3, 5),
    ("rotations", "sparse-lamaml"): (0.15, 1.7, 5),
    ("permutations", "lamaml"): (0.15, 0.3, 5),
    ("permutations", "sparse-lamaml"): (0.1, 1.7, 10),
    ("many-permutations", "lamaml"): (0.1, 0.3, 10),
    ("many-permutations", "sparse-lamaml"): (0.05, 0.75, 10),
}

# Table S7: accuracy on all ten classes after one pass over Split-CIFAR-10, by images in memory.
TABLE_S7 = {
    ("er", 200): Published(19.75, 1.23),
    ("mer", 200): Published(25.11, 1.77),
    ("gem", 200): Published(25.14, 0.67),
    ("lamaml", 200): Published(22.08, 1.83),
    ("sparse-lamaml", 200): Published(27.85, 0.69),
    ("er", 1000): Published(29.12, 2.41),
    ("mer", 1000): Published(34.66, 1.38),
    ("gem", 1000): Published(31.55, 0.81),
    ("lamaml", 1000): Published(36.24, 0.91),
    ("sparse-lamaml", 1000): Published(37.70, 0.80),
}
