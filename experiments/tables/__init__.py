"""What `experiments.reproduce` prints: the paper's tables and figures, ours beside the paper's."""
