"""Train a Mask R-CNN on a trained encoder: `python -m examples.detection --help`."""
