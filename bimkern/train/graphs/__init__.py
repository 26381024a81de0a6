"""Steps of a GPU as CUDA graphs: --cuda-graphs."""
