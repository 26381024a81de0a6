"""Train a UperNet on a trained encoder: `python -m examples.segmentation --help`."""
