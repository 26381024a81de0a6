"""One stage per process: tokens travel forward, and what all ranks must know travels beside them."""
