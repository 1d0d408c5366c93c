"""Where the metrics of a run are shown: TensorBoard, Weights & Biases, MLflow."""

from experiments.loggers.flags import TENSORBOARD, LoggerFlags, check, of_run
from experiments.loggers.loggers import Loggers

__all__ = ["TENSORBOARD", "LoggerFlags", "Loggers", "check", "of_run"]
