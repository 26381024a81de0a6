"""The memory of a step: counted, estimated, budgeted and allocated."""
