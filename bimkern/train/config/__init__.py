"""The typed config of a run, and its JSON."""
