"""memory_efficient_attention, documented to take and return [B, T, H, E] and to scale by 1 / sqrt(E)."""

seen = []  # dtype of every call


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
    seen.append(query.dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = (query.movedim(1, 2).float() @ key.permute(0, 2, 3, 1).float() * scale).softmax(-1)  # [B, H, T, T]
    return (weights @ value.movedim(1, 2).float()).movedim(1, 2).to(query.dtype)
