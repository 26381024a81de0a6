#!/usr/bin/env bash
# vit-pytorch's NaViT of nested tensors fails in training mode by default: only with a token_dropout_prob does it train.
set -euo pipefail
exec "$(dirname "$0")/with_packages" vit-pytorch==1.26.14 packaging==26.4 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
from vit_pytorch import na_vit, na_vit_nested_tensor, na_vit_nested_tensor_3d

small = {"image_size": 64, "patch_size": 16, "num_classes": 4, "dim": 32, "depth": 1, "heads": 2, "mlp_dim": 64}
images = [torch.rand(3, 64, 32), torch.rand(3, 32, 64)]
videos = [torch.rand(3, 4, 64, 32), torch.rand(3, 2, 32, 64)]
models = {
    "padded": (na_vit.NaViT, {}, images),
    "nested": (na_vit_nested_tensor.NaViT, {}, images),
    "nested, of videos": (na_vit_nested_tensor_3d.NaViT, {"max_frames": 4, "frame_patch_size": 2}, videos),
}


def result(kind, options, inputs, training):
    """Return the shape of the logits, or what the model raises."""
    try:
        return tuple(kind(**small, **options).train(training)(inputs).shape)
    except TypeError as error:
        return str(error)


print(f"vit-pytorch {version('vit-pytorch')}, torch {torch.__version__}")
print("expected: logits of inputs of two sizes, in training as in eval mode; token_dropout_prob is None by default")
for name, (kind, options, inputs) in models.items():
    evaluated, trained = (result(kind, options, inputs, training) for training in (False, True))
    dropping = result(kind, {**options, "token_dropout_prob": 0.1}, inputs, True)
    print(f"observed: {name}: eval {evaluated}, training {trained}, with token_dropout_prob=0.1 {dropping}")
    assert evaluated == dropping == (2, 4)
    assert isinstance(trained, str) == ("nested" in name), "this has changed"
PYTHON
