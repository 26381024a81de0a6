"""Studies: every method on images that come with the test packages; `python -m bench digits|photographs`."""
