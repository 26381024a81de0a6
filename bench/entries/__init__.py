"""One file an entry; each registers itself, and `python -m bench --list` finds it."""
