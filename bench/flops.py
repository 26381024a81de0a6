"""Operations of the matrix products of a training step, counted for the tokens that are visible.

Letters: N patches, T tokens (prefix and patches) of a stage, D width, H hidden width of the MLP, P values of a patch.
"""

from bimkern.mim.model import Method

FORMULA = """\
operations of an image (a multiply-add is two), over the stages, T visible tokens with the cls token of N patches:
  transformer block  2 T (4 D^2 + 2 D H) + 4 T^2 D, with H the hidden width of its MLP
  encoder            its blocks at T tokens, and the embedding of the visible patches, 2 (T - 1) D P
  head               2 T D d for the entry, its blocks of width d at N + 1 tokens, 2 (N + 1) d P for the prediction
  a step             3 times the forward pass; the embedding, whose input has no gradient, twice"""


def block_flops(tokens: int, width: int, hidden: int) -> int:
    products = 2 * tokens * (4 * width**2 + 2 * width * hidden)
    attention = 4 * tokens**2 * width
    return products + attention


def step_flops(method: Method) -> int:
    """Count the operations of one image in one training step by FORMULA."""
    encoder, head = method.encoder, method.head(0)
    N = encoder.grid[0] * encoder.grid[1]
    P = encoder.channels * encoder.patch**2
    counts = method.masker.entering(encoder.grid, len(method.taps))
    embedding = 2 * counts[0] * encoder.width * P
    forward = 0
    for stage, (tap, kept) in enumerate(zip(method.taps, counts, strict=True)):
        depth = tap - (method.taps[stage - 1] if stage else -1)
        forward += depth * block_flops(kept + 1, encoder.width, int(encoder.width * encoder.mlp_ratio))
        forward += 2 * (kept + 1) * encoder.width * head.width
        forward += head.depth * block_flops(N + 1, head.width, int(head.width * head.mlp_ratio))
        forward += 2 * (N + 1) * head.width * P
    return 3 * forward + 2 * embedding
