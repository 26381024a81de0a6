#!/usr/bin/env bash
# A new ViTMAE has positions of zero instead of its fixed sines and cosines; loaded from a file, they are trained.
set -euo pipefail
exec "$(dirname "$0")/with_packages" transformers==5.24.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import tempfile

import torch
import transformers

transformers.logging.disable_progress_bar()
small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
config = transformers.ViTMAEConfig(
    **small, **{f"decoder_{name}": value for name, value in small.items()}, image_size=32, patch_size=8
)


def tables(model):
    return model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed


new = transformers.ViTMAEForPreTraining(config)
with tempfile.TemporaryDirectory() as folder:
    new.save_pretrained(folder)
    loaded = transformers.ViTMAEForPreTraining.from_pretrained(folder)
sums = [table.detach().abs().sum().item() for table in tables(new)]
trained = [table.requires_grad for table in tables(loaded)]
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: both tables hold sines and cosines, and stay without gradient, as in a new model")
print(f"observed: a new model's tables sum to {sums} in absolute value; require a gradient when loaded: {trained}")
assert not any(table.requires_grad for table in tables(new)), "this has changed"
assert sums == [0.0, 0.0], "this has changed"
assert trained == [True, True], "this has changed"
PYTHON
