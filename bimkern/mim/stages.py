"""How an encoder is cut into stages."""


def equal_stages(depth: int, num_stages: int = 4) -> tuple[int, ...]:
    """Return the taps that cut an encoder into equal stages; BIM's paper calls them blocks, and has four.

    Raises:
        ValueError: the layers cannot be divided so.
    """
    if num_stages < 1 or depth % num_stages:
        raise ValueError(f"equal_stages: depth must be a multiple of num_stages={num_stages}, got {depth}")
    return tuple(range(depth // num_stages - 1, depth, depth // num_stages))
