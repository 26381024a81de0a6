"""What attention maps are like: how far, how widely and how differently queries and heads attend.

Weights are those of image patches. Weights below 1.2e-38, the smallest normal float32, count as such in logarithms.

Shapes: H distributions of each query (of heads, or of layers), Q queries, K keys; `...` is any shape.
"""

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


def without_prefix(weights: Tensor, num_prefix: int) -> Tensor:
    """Return the weights among patches: without the prefix tokens, whose share goes to the patches in proportion.

    Args:
        weights: [..., R+Q, R+K] float32, R prefix tokens first; rows sum to one.
        num_prefix: R, 1 for a class token.

    Returns:
        [..., Q, K]; rows sum to one, unless a query attends to nothing but prefix tokens: then to zero.
    """
    if not num_prefix:
        return weights
    patches = weights[..., num_prefix:, num_prefix:]
    return patches / patches.sum(dim=-1, keepdim=True).clamp_min(_TINY)


def attention_distance(weights: Tensor, distances: Tensor) -> Tensor:
    """Average the distance between query and key, weighted by attention: mean over q of sum over k of A[q, k] d[q, k].

    Args:
        weights: [..., Q, K] float32, A; rows sum to one.
        distances: [Q, K] or [..., Q, K], d, in the unit of the result.

    Returns:
        [...].

    Source: Dosovitskiy et al. 2021 (ViT), appendix D.7; Raghu et al. 2021 "Do Vision Transformers See Like
    Convolutional Neural Networks?"; Xie et al. 2022 "Revealing the Dark Secrets of Masked Image Modeling".
    """
    return (weights * distances).sum(dim=-1).mean(dim=-1)


def attention_entropy(weights: Tensor) -> Tensor:
    """Average the entropy of queries' attention in nats: mean over q of -sum over k of A[q, k] ln A[q, k].

    Args:
        weights: [..., Q, K] float32, A; rows sum to one.

    Returns:
        [...], in [0, ln K].

    Source: Clark et al. 2019 "What Does BERT Look At?"; Xie et al. 2022.
    """
    return _entropy(weights).mean(dim=-1)


def normalized_mutual_information(weights: Tensor) -> Tensor:
    """Return how much the keys depend on the query: I(q; k) / sqrt(H(q) H(k)).

    Queries are uniform, p(q) = 1 / Q and p(k | q) = A[q, k], so that H(q) = ln Q, p(k) is the mean of A over queries,
    and I(q; k) = H(k) - mean over q of H(k | q). 0: all queries attend alike, as in a collapse. 1: each to its own key.

    Args:
        weights: [..., Q, K] float32, A; rows sum to one.

    Returns:
        [...], in [0, 1]; 0 where all attend to one key alone, NaN for a single query.

    Source: Park et al. 2023 "What Do Self-Supervised Vision Transformers Learn?", after Strehl and
    Ghosh 2002.
    """
    num_queries = torch.tensor(float(weights.shape[-2]), device=weights.device)
    of_keys = _entropy(weights.mean(dim=-2))
    information = (of_keys - attention_entropy(weights)).clamp_min(0)
    # Without uncertainty about the key there is nothing to know about it, and the quotient would be that of rounding.
    found = torch.where(of_keys > 1e-5, information / (num_queries.log() * of_keys).sqrt(), 0).clamp_max(1)
    return found if weights.shape[-2] > 1 else torch.full_like(found, torch.nan)


def kl_divergence(weights: Tensor) -> Tensor:
    """Return how much distributions of attention differ: mean over q of KL(A_g[q] || A_h[q]), in nats.

    KL(p || r) = sum over k of p[k] ln(p[k] / r[k]).

    Args:
        weights: [..., H, Q, K] float32, A of each head; rows sum to one.

    Returns:
        [..., H, H], of g in rows and h in columns; at least 0, and 0 on the diagonal.

    Source: Xie et al. 2022, between the heads of a layer.
    """
    flat, logs = weights.flatten(-2), weights.clamp_min(_TINY).log().flatten(-2)
    cross = flat @ logs.mT / weights.shape[-2]  # [..., H, H]
    return (cross.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) - cross).clamp_min(0)


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp_min(_TINY).log()).sum(dim=-1)
