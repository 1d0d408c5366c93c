"""Published numbers that our runs are compared with, in percent."""

from typing import NamedTuple


class Published(NamedTuple):
    """A published number.

    Attributes:
      mean: in percent.
      std: over seeds; None if the paper gives none.
      note: a remark that is printed with it.
    """

    mean: float
    std: float | None = None
    note: str = ""


# Table S5: the share of frozen parameters at the end of the stream.
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
        "total": Published(16.17, note="the values printed for the layers imply 10.8 to 11.8"),
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

# From the text about Table S7: sparsity of the last layer, of the other layers, of all.
S7_SPARSITY = {
    ("lamaml", 200): (None, None, Published(96.3, 1.5)),
    ("lamaml", 1000): (None, None, Published(34.0, 1.39)),
    ("sparse-lamaml", 200): (Published(57.5, 0.866), Published(1.6, 0.68), None),
    ("sparse-lamaml", 1000): (Published(64.75, 0.8292), Published(1.0, 0.70), None),
}


def _s8(total, omniglot, mnist, fashion_mnist):
    names = ("total", "omniglot", "mnist", "fashion_mnist")
    cells = (total, omniglot, mnist, fashion_mnist)
    return {name: Published(*cell) for name, cell in zip(names, cells, strict=True)}


# Table S8: online accuracy over 10,000 timesteps; "" is the row as printed. In each row the total
# is the mean of the datasets, weighted by how often they are drawn. This does not hold in the row
# of sparse-ReLU-C-MAML, which is misprinted. It holds if the numbers are moved one column to the
# left. At p = 0.9 the total is then missing, and Table S9's is used.
TABLE_S8 = {
    ("online-adam", 0.98): {"": _s8((73.9, 2.2), (81.7, 2.3), (70.0, 3.6), (62.3, 2.5))},
    ("fine-tuning", 0.98): {"": _s8((72.7, 1.7), (80.8, 2.0), (68.7, 2.8), (59.6, 3.1))},
    ("maml", 0.98): {"": _s8((84.5, 1.7), (97.3, 0.3), (80.4, 0.3), (63.5, 0.3))},
    ("anil", 0.98): {"": _s8((75.3, 2.0), (95.1, 0.6), (58.7, 2.9), (49.7, 0.3))},
    ("bgd", 0.98): {"": _s8((87.8, 1.3), (95.1, 0.5), (86.9, 1.1), (74.4, 1.1))},
    ("metacog", 0.98): {"": _s8((88.0, 1.0), (95.2, 0.5), (87.1, 1.5), (74.3, 1.5))},
    ("metabgd", 0.98): {"": _s8((91.1, 2.6), (96.8, 1.5), (92.5, 1.9), (77.8, 3.8))},
    ("cmaml", 0.98): {"": _s8((92.8, 0.6), (97.8, 0.2), (93.9, 0.8), (79.9, 0.7))},
    ("sparse-cmaml", 0.98): {"": _s8((94.2, 0.4), (97.3, 0.1), (93.4, 0.4), (86.3, 0.3))},
    ("sparse-relu-cmaml", 0.98): {
        "as printed": _s8((93.5, 0.5), (97.16, 0.2), (97.2, 0.2), (94.1, 0.4)),
        "moved left": _s8((93.5, 0.5), (97.2, 0.2), (94.1, 0.4), (84.7, 1.3))},
    ("online-adam", 0.9): {"": _s8((23.8, 1.2), (26.6, 2.0), (20.0, 1.4), (22.1, 1.3))},
    ("fine-tuning", 0.9): {"": _s8((22.1, 1.1), (25.5, 1.5), (18.1, 1.9), (19.2, 1.6))},
    ("maml", 0.9): {"": _s8((75.5, 0.7), (88.8, 0.4), (68.1, 0.5), (56.2, 0.4))},
    ("anil", 0.9): {"": _s8((69.1, 0.8), (88.3, 0.5), (52.4, 0.6), (47.6, 0.9))},
    ("bgd", 0.9): {"": _s8((63.4, 0.9), (72.8, 1.2), (55.9, 2.2), (51.7, 1.3))},
    ("metacog", 0.9): {"": _s8((63.6, 0.9), (73.5, 1.3), (55.9, 1.8), (51.7, 1.4))},
    ("metabgd", 0.9): {"": _s8((74.8, 1.1), (83.1, 1.0), (71.7, 1.5), (61.5, 1.2))},
    ("cmaml", 0.9): {"": _s8((83.3, 0.4), (89.0, 0.5), (84.5, 0.7), (71.1, 0.7))},
    ("sparse-cmaml", 0.9): {"": _s8((86.3, 0.4), (89.3, 0.5), (87.7, 0.4), (77.4, 0.5))},
    ("sparse-relu-cmaml", 0.9): {
        "as printed": _s8((84.7, 1.3), (89.3, 0.2), (87.5, 0.5), (78.3, 0.2)),
        "moved left": _s8((86.1, 0.2), (89.3, 0.2), (87.5, 0.5), (78.3, 0.2))},
}  # fmt: skip

# Table S9: online accuracy; alpha_0 and gamma_m.
TABLE_S9 = {
    ("cmaml", 0.98): (Published(92.8, 0.6), "0.1, 0.005"),
    ("cmaml-fixed", 0.98): (Published(92.0, 0.1), "0.1, -"),
    ("sparse-cmaml", 0.98): (Published(94.2, 0.4), "0.3, 0.01"),
    ("sparse-relu-cmaml", 0.98): (Published(93.5, 0.4), "-, 0.01"),
    ("cmaml", 0.9): (Published(83.3, 0.4), "0.1, 0.001"),
    ("cmaml-fixed", 0.9): (Published(85.3, 0.5), "0.3, -"),
    ("sparse-cmaml", 0.9): (Published(86.3, 0.4), "0.3, 0.003"),
    ("sparse-relu-cmaml", 0.9): (Published(86.1, 0.2), "-, 0.01"),
}

# Table 1: test accuracy on miniImageNet by method and shots, Conv4-64. The authors' README has
# these numbers; one copy of it has 50.15 and 66.80 for sparse-ReLU-MAML. Those of FOMAML are the
# first-order results of MAML's paper.
TABLE_1 = {
    ("fomaml", 1): Published(48.07), ("fomaml", 5): Published(63.15),
    ("anil", 1): Published(46.70), ("anil", 5): Published(61.50),
    ("boil", 1): Published(49.61), ("boil", 5): Published(66.45),
    ("sparse-relu-maml", 1): Published(50.39), ("sparse-relu-maml", 5): Published(64.84),
    ("sparse-maml", 1): Published(50.35), ("sparse-maml", 5): Published(67.03, 0.74),
}  # fmt: skip


def _s1(accuracy, ensemble, sparsity=None):
    return tuple(None if x is None else Published(x) for x in (accuracy, ensemble, sparsity))


# Table S1: ResNet-12, by network, shots and method: accuracy, accuracy of the ensemble, sparsity.
TABLE_S1 = {
    ("resnet12-large", 1, "fomaml"): _s1(53.51, 55.65),
    ("resnet12-large", 1, "anil"): _s1(52.95, 55.23),
    ("resnet12-large", 1, "sparse-maml"): _s1(55.18, 56.83, 48.39),
    ("resnet12-large", 1, "sparse-relu-maml"): _s1(55.29, 57.44, 29.56),
    ("resnet12-large", 5, "fomaml"): _s1(69.58, 72.77),
    ("resnet12-large", 5, "anil"): _s1(69.39, 73.07),
    ("resnet12-large", 5, "sparse-maml"): _s1(69.93, 72.83, 23.57),
    ("resnet12-large", 5, "sparse-relu-maml"): _s1(72.93, 75.60, 12.95),
    ("resnet12", 1, "fomaml"): _s1(53.91, 56.09),
    ("resnet12", 1, "anil"): _s1(55.25, 57.02),
    ("resnet12", 1, "sparse-maml"): _s1(55.02, 57.53, 37.56),
    ("resnet12", 1, "sparse-relu-maml"): _s1(56.39, 58.41, 28.44),
    ("resnet12", 5, "fomaml"): _s1(69.36, 72.50),
    ("resnet12", 5, "anil"): _s1(70.03, 73.09),
    ("resnet12", 5, "sparse-maml"): _s1(70.02, 72.87, 15.09),
    ("resnet12", 5, "sparse-relu-maml"): _s1(73.01, 75.52, 15.78),
}

# Table S3: 5 shots, by method and variant. The paper has one kind of statistics that are not
# transductive, and does not say which of our two it is.
TABLE_S3 = {
    ("sparse-maml", "transductive"): Published(67.03, 0.74),
    ("sparse-maml", "no biases"): Published(66.11, 0.57),
    ("sparse-maml", "support"): Published(54.75, 1.17),
    ("sparse-maml", "running"): Published(54.75, 1.17),
    ("fomaml", "support"): Published(55.58, 1.68),
    ("fomaml", "running"): Published(55.58, 1.68),
}

# Table S4: two phases, by shots and initial sparsity: accuracy, final sparsity.
TABLE_S4 = {
    (1, 0.0): (Published(46.42, 0.58), Published(9)),
    (1, 0.5): (Published(46.42, 0.27), Published(45)),
    (5, 0.0): (Published(64.68, 0.16), Published(29)),
    (5, 0.5): (Published(64.01, 0.47), Published(51)),
}
