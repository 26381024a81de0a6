"""Ranks that begin their next run while rank 0 is still busy with the last."""

import time

from bimkern.distributed.connect import connected


def agree_in_turn(runs):
    """Agree on something in several runs; rank 0 ends each of them later than the others."""
    return [_agree(number) for number in range(runs)]


def _agree(number):
    with connected("cpu", 20.0) as ranks:
        found, rank = ranks.all_gather_object(number), ranks.rank
        if rank == 0:
            time.sleep(0.5)
    del ranks
    if rank == 0:
        time.sleep(0.5)
    return found
