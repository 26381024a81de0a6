"""What torch sees of the ops: compiled without a warning, and schemas that the stable ABI can serve."""

import sys
from pathlib import Path

import commands
import torch

from bimkern.ops import backends

# In a process of its own: dynamo warns once. The eager backend, since a warning comes from tracing.
COMPILE_ALL = """
import torch
from bimkern import ops
from bimkern.ops import MatchLayers

B, N, K, D = 2, 16, 4, 8
ids, keep = torch.arange(B), torch.tensor([[3, 0, 7, 15]]).expand(B, -1)
tokens, visible, pos = torch.randn(B, N, D), torch.randn(B, K, D, requires_grad=True), torch.randn(N, D)
images, weight = torch.randn(B, 3, 16, 16), torch.randn(D, 3, 4, 4)
mask, layers = torch.rand(B, N) < 0.5, MatchLayers(torch.randn(D, D, 1, 1), torch.randn(D))
groups = ops.group_windows(torch.arange(N)[None], (4, 4), 1)
calls = {
    "embed_visible": lambda: ops.embed_visible(images, weight, pos[0], keep, pos),
    "gather_tokens": lambda: ops.gather_tokens(tokens, keep, pos),
    "group_attention": lambda: ops.group_attention(tokens[..., :6], pos[:1, :1], groups, 1),
    "group_windows": lambda: ops.group_windows(keep, (4, 4), 2, 1),
    "hog": lambda: ops.hog(images, 4),
    "keep_to_mask": lambda: ops.keep_to_mask(keep, N),
    "masked_loss": lambda: ops.masked_loss(tokens, tokens, mask),
    "masked_pixel_loss": lambda: ops.masked_pixel_loss(torch.randn(B, N, 48), images, mask, patch=4),
    "match_loss": lambda: ops.match_loss(tokens, layers, tokens, mask, 1),
    "match_predict": lambda: ops.match_predict(tokens, layers, 1),
    "pixel_targets": lambda: ops.pixel_targets(images, 4),
    "random_keep": lambda: ops.random_keep(ids, N, K, seed=0, step=3),
    "restore_tokens": lambda: ops.restore_tokens(visible, keep, pos[0], pos, num_tokens=N),
    "scale_mask": lambda: ops.scale_mask(mask, 2),
}
for call in calls.values():
    torch.compile(call, fullgraph=True, backend="eager")()
print(*calls)
"""


def test_compiling_the_ops_warns_of_nothing():
    root = Path(__file__).resolve().parents[2]
    done = commands.run([sys.executable, "-W", "default", "-c", COMPILE_ALL], cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(backends())
    warnings = [line for line in done.stderr.splitlines() if "Warning" in line and "torch.jit" not in line]
    assert not warnings, done.stderr


def test_no_schema_holds_a_string():
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("bimkern::")]
    assert len(schemas) > len(backends())
    assert not [str(schema) for schema in schemas if " str " in str(schema) or "str?" in str(schema)]
