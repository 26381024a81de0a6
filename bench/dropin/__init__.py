"""`python -m bench dropin`: training steps of other people's programs, with and without our ops."""
