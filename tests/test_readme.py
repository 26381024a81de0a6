"""What README shows works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from interop import import_or_skip
from PIL import Image

from bimkern import ops
from bimkern.exporters.own import write_backbones
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES

ROOT = Path(__file__).parent.parent


def code_of(section):
    """The Python of a section."""
    text = re.search(rf"^## {section}$(.*?)^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)[1]
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return code


def test_the_demos_backbone_is_loaded_and_gives_its_own_features(tmp_path):
    """In a new process, where timm imports as it does for a user."""
    import_or_skip("timm")
    config = RECIPES["demo"].config
    model = MIM(config.method)
    write_backbones(tmp_path / "runs/demo/exported", Trained(config, 500, model.state_dict()))
    photo = Image.fromarray(torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8).numpy())
    photo.save(tmp_path / "photo.jpg")

    code = f"{code_of('Use the backbone')}\nimport torch\ntorch.save(features, 'features.pt')"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, check=True)
    features = torch.load(tmp_path / "features.pt", weights_only=True)

    resized = Image.open(tmp_path / "photo.jpg").resize((73, 93), Image.Resampling.BICUBIC)
    pixels = np.array(resized.crop((4, 14, 68, 78)))  # 64 of a short side of 64 / 0.875
    images = model.colors.normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    tokens = model.encoder.embed(images)
    for block in model.encoder.blocks:
        tokens = block(tokens)
    expected = model.heads[-1].in_norm(tokens)[:, 1:].mean(1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_the_ops_alone_draw_other_masks_at_every_step(monkeypatch):
    drawn = []

    def record(*args, **kwargs):
        drawn.append(random_keep(*args, **kwargs))
        return drawn[-1]

    random_keep = ops.random_keep
    monkeypatch.setattr(ops, "random_keep", record)
    names = {}
    exec(code_of("The ops alone"), names)
    assert len(drawn) == 3
    assert len(torch.cat(drawn).unique(dim=0)) == 3 * 8
    assert torch.equal(
        names["visible"][:, 1:], names["tokens"][:, 1:].gather(1, drawn[-1][..., None].expand(-1, -1, 768))
    )
