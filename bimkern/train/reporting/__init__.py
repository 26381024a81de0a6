"""What a run reports: metrics, progress, held-out errors, plots."""
