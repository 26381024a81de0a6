#!/usr/bin/env bash
# A saved ViTMAE has names for its decoder that no release's model has, so older releases do not find those weights.
set -euo pipefail
exec "$(dirname "$0")/with_packages" transformers==5.24.0 torch==2.13.0 numpy==2.4.6 <<'PYTHON'
import tempfile

import safetensors.torch
import torch
import transformers

transformers.logging.disable_progress_bar()
small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
config = transformers.ViTMAEConfig(
    **small, **{f"decoder_{name}": value for name, value in small.items()}, image_size=32, patch_size=8
)
model = transformers.ViTMAEForPreTraining(config)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    saved = safetensors.torch.load_file(f"{folder}/model.safetensors")
layers = sorted({name.split(".0.")[0] for name in saved if name.startswith("decoder.") and ".0." in name})
of_model = sorted({name.split(".0.")[0] for name in model.state_dict() if name.startswith("decoder.") and ".0." in name})
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("expected: the file names the layers decoder.decoder_layers, as the published checkpoints and the model do")
print(f"observed: the file has {layers}, the model {of_model}")
assert of_model == ["decoder.decoder_layers"], "this has changed"
assert layers == ["decoder.decoder_encoder.layer"], "this has changed"
PYTHON
