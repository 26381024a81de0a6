"""Quality in small: every method on scikit-learn's digits; `python -m bench.digits`."""
