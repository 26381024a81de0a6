"""Ranks one of which fails, as functions that ranks import."""

import os
import signal

from bimkern.pretrain import main
from bimkern.train import training


def with_a_mistake(arguments):
    """Run a command; in rank 1 a mistake of ours ends it before the first step."""
    _in_rank_1(lambda: {}["a mistake of ours"])
    main(arguments)


def with_sigterm_before_the_first_step(arguments):
    _in_rank_1(lambda: os.kill(os.getpid(), signal.SIGTERM))
    main(arguments)


def _in_rank_1(fail):
    train = training.train

    def failing(*arguments):
        if os.environ["RANK"] == "1":
            fail()
        return train(*arguments)

    training.train = failing
