"""`python -m bench traffic`: the memory traffic of the GPU kernels, counted on the CPU."""
