"""The tables and figures of `experiments.reproduce`: our numbers next to the paper's."""
