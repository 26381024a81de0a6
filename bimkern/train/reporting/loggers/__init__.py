"""Where a run is logged besides its own folder: a file or a service, by name."""
