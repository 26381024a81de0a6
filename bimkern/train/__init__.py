"""Training: the typed config, optimizers, checkpoints, the run's log and pictures, and the loop."""
