"""The folder of a run, and the dataset that it is trained on."""
