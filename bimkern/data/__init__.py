"""Images in: sources, counter-based augmentation, loaders."""
