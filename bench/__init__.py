"""What is fast, against whom: `python -m bench --help`; also `pytest bench --benchmark-only`."""

from bimkern import openmp

openmp.prepare()
