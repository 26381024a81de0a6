"""Where the time of a training step goes, part by part."""
