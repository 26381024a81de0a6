"""The folder of a run, and the list of images that it is trained on."""
