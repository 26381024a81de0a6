"""What fails on one rank fails on all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from bimkern.distributed.ranks import Ranks
from bimkern.errors import BimkernError


class OtherRank(BimkernError):
    """Another rank cannot continue, and says so."""


@contextmanager
def agreed(ranks: Ranks, kind: type[BimkernError] = OtherRank) -> Iterator[None]:
    """Run something on every rank; where it fails on some, fail on all.

    Raises:
        BimkernError: its own error, or one of this kind where it failed on another rank.
    """
    own: BimkernError | None = None
    try:
        yield
    except BimkernError as error:
        own = error
    first = first_error(ranks, own, kind)
    if first is not None:
        raise first


def meet(ranks: Ranks) -> None:
    """Wait for all ranks, as long as they take: only the end of one is noticed."""
    with ranks.patient():
        ranks.all_reduce_max([0])


def first_error(ranks: Ranks, own: BimkernError | None, kind: type[BimkernError] = OtherRank) -> BimkernError | None:
    """Return the error of the first rank that has one, of this kind where that is another; None where none has.

    Rank 0 reports it.
    """
    found = ranks.all_gather_object(None if own is None else [str(own), own.exit_code])
    failed = next((rank for rank, one in enumerate(found) if one is not None), None)
    if failed is None:
        return None
    text, exit_code = found[failed]
    first = own if own is not None and failed == ranks.rank else kind(f"rank {failed}: {text}")
    first.exit_code, first.reported = exit_code, ranks.rank > 0
    return first
