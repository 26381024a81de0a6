"""Updates of parameter groups, and what happens when they are not finite."""
