"""Few-shot runs: their configuration, pure program, host loop and result."""
