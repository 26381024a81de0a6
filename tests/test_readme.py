"""The code in README.md does what the text around it says."""

import re
from pathlib import Path

import torch

from bimkern import ops

README = Path(__file__).resolve().parents[1] / "README.md"


def example(section):
    """Return the first block of Python below a heading."""
    text = README.read_text().split(f"## {section}\n", maxsplit=1)[1]
    return re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]


def test_the_ops_alone_draw_other_masks_at_every_step(monkeypatch):
    drawn = []

    def record(*args, **kwargs):
        drawn.append(random_keep(*args, **kwargs))
        return drawn[-1]

    random_keep = ops.random_keep
    monkeypatch.setattr(ops, "random_keep", record)
    names = {}
    exec(example("The ops alone"), names)
    assert len(drawn) == 3
    assert len(torch.cat(drawn).unique(dim=0)) == 3 * 8
    assert torch.equal(
        names["visible"][:, 1:], names["tokens"][:, 1:].gather(1, drawn[-1][..., None].expand(-1, -1, 768))
    )
