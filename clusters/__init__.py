"""Where a run lives: configs, launching, ranks, checkpoints, tracking. Knows no images."""
