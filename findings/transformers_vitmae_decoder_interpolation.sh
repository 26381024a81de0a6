#!/usr/bin/env bash
# ViTMAE's decoder resizes its positions along one line of patches, not over the grid as its encoder does.
set -euo pipefail
exec "$(dirname "$0")/with_packages" transformers==5.24.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
import transformers

small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
config = transformers.ViTMAEConfig(
    **small, **{f"decoder_{name}": value for name, value in small.items()}, image_size=32, patch_size=8
)
model = transformers.ViTMAEForPreTraining(config)
encoder, decoder = model.vit.embeddings, model.decoder


def columns(height, width):
    """Return the columns at which both halves of the model place the patches of an image, if a table holds columns."""
    tokens = torch.zeros(1, 1 + height * width, 8)
    of_encoder = encoder.interpolate_pos_encoding(tokens, 8 * height, 8 * width)
    of_decoder = decoder.interpolate_pos_encoding(tokens)
    return [table[0, 1:, 0].reshape(height, width) for table in (of_encoder, of_decoder)]


with torch.no_grad():
    for table in (encoder.position_embeddings, decoder.decoder_pos_embed):
        table[0, 1:] = torch.arange(4.0).repeat(4)[:, None]  # 4 x 4 patches, each at its column
    found = {grid: columns(*grid) for grid in ((4, 4), (8, 8), (2, 8))}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: with interpolate_pos_encoding both halves place the patches of an image alike, in rows and columns")
for (height, width), tables in found.items():
    for half, table in zip(("encoder", "decoder"), tables):
        rows = "; ".join(", ".join(f"{value:.1f}" for value in row) for row in table[:2].tolist())
        print(f"observed: {height} x {width}, {half}, columns of the first two rows: {rows}")
for grid, (of_encoder, of_decoder) in found.items():
    assert torch.allclose(of_encoder, of_encoder[:1].expand_as(of_encoder), atol=1e-5), "this has changed"
    assert torch.allclose(of_encoder, of_decoder) == (grid == (4, 4)), "this has changed"
PYTHON
