#!/usr/bin/env bash
# A Swin that saw one smaller image gives other features for later ones: its blocks stop shifting their windows.
set -euo pipefail
exec "$(dirname "$0")/with_packages" transformers==5.24.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import torch
import transformers

torch.manual_seed(0)
config = transformers.SwinConfig(
    image_size=64, patch_size=4, window_size=4, embed_dim=8, depths=[2, 2], num_heads=[1, 1], initializer_range=0.5
)
model = transformers.SwinModel(config).eval()  # no dropout, no statistics: nothing is meant to change
large, small = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 32, 32)


def shifts():
    return [block.shift_size for stage in model.encoder.layers for block in stage.blocks]


with torch.no_grad():
    first, shifts_before = model(large).last_hidden_state, shifts()
    again = model(large).last_hidden_state
    model(small)  # in the last stage it is as large as one window, which needs no shift
    after, shifts_after = model(large).last_hidden_state, shifts()
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: the same features of an image before and after a smaller one, as both sizes are supported")
print(f"observed: they differ by up to {(after - first).abs().max():.2f}, of features up to {first.abs().max():.2f}")
print(f"          shifts of the four blocks before: {shifts_before}, after: {shifts_after}")
assert torch.equal(first, again), "this has changed"
assert (after - first).abs().max() > 0.1, "this has changed"
assert shifts_before == [0, 2, 0, 2] and shifts_after == [0, 2, 0, 0], "this has changed"
PYTHON
