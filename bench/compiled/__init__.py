"""What the compilers make of the GPU kernels: registers, spills and access widths. Needs no GPU."""
