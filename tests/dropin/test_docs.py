"""The snippets of the manual's page on drop-ins run as they stand."""

import manual_pages
import pytest
import torch
from interop import import_or_skip

from bimkern import dropin
from bimkern.ops import restore_tokens

SNIPPETS = manual_pages.python(manual_pages.ROOT / "docs" / "dropins.md")
PACKAGES = ("transformers", "vit_pytorch", "timm", "lightly")


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: code.splitlines()[0])
def test_a_snippet_runs(code):
    for package in PACKAGES:
        if f"from {package}" in code or f"import {package}" in code:
            import_or_skip(package)
    exec(code, names := {})
    if "patch" in names:
        patched = names.get("backbone", names.get("model"))
        assert dropin.patch(patched).replaced


def test_lightlys_own_step_gives_the_same_decoder_input():
    utils = import_or_skip("lightly.models.utils")
    encoded, mask_token = torch.randn(2, 5, 8), torch.randn(1, 1, 8)
    idx_keep, _ = utils.random_token_mask((2, 17), 0.75)
    expected = utils.set_at_index(utils.repeat_token(mask_token, (2, 17)), idx_keep, encoded)
    assert torch.equal(restore_tokens(encoded, idx_keep, mask_token, num_tokens=17), expected)
