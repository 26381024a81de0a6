#!/usr/bin/env bash
# A BEiT for rectangular images reads its table of relative positions with height and width exchanged.
set -euo pipefail
exec "$(dirname "$0")/with_packages" transformers==5.24.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
import transformers


def biases(height, width):
    """Return what the first patch of a grid adds for each patch, if the table holds distances to the right."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.BeitConfig(
        **small, image_size=(16 * height, 16 * width), patch_size=16, use_relative_position_bias=True
    )
    (bias,) = [module for module in transformers.BeitModel(config).modules() if hasattr(module, "window_size")]
    with torch.no_grad():
        # One row for each distance, those to the right fastest, as in BEiT and timm; then three of the class token.
        bias.relative_position_bias_table[:-3, 0] = torch.arange(width - 1.0, -width, -1).repeat(2 * height - 1)
        return bias((height, width))[0, 0, 1, 1:].reshape(height, width)


found = {grid: biases(*grid) for grid in ((4, 4), (2, 4), (4, 2))}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: every row of every grid reads 0, 1, ..., the distances of its columns from the first one")
for (height, width), bias in found.items():
    rows = "; ".join(", ".join(f"{abs(value):.2f}" for value in row) for row in bias.tolist())
    print(f"observed: {height} x {width} patches: {rows}")
for (height, width), bias in found.items():
    right = torch.allclose(bias, torch.arange(float(width)).expand(height, width))
    assert right == (height == width), "this has changed"
PYTHON
