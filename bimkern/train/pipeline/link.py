"""The way of tokens from rank to rank, with a bounded queue.

Shapes: B images, T tokens of a stage, D width.
"""

from collections import deque
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from bimkern.distributed.point_to_point import Lines
from bimkern.distributed.ranks import Group
from bimkern.distributed.transfers import Traffic, Transfer
from bimkern.train.memory.ranks import QUEUE

_MOST_DIMS = 8
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Link:
    """Receive from the rank before, send to the rank behind; the first time, the shape of a key travels ahead.

    What is sent is copied, so that a stage may overwrite it, and memory is allocated only where tokens get larger.
    """

    def __init__(self, ranks: Group, device: torch.device) -> None:
        self._rank, self._device = ranks.rank, device
        self._tokens, self._shapes = Lines(ranks, own=False), Lines(ranks, own=True)
        self._received: dict[Hashable, tuple[torch.Size, torch.dtype]] = {}
        self._sent: set[Hashable] = set()
        self._expected: deque[Hashable] = deque()
        self._coming: deque[tuple[Tensor, Transfer]] = deque()
        self._copies = [torch.empty(0, dtype=torch.uint8, device=device)] * QUEUE  # of what is sent, in turn
        self._leaving: deque[Transfer] = deque()  # the newest copies
        self._next = 0  # copy to overwrite
        self._arrived: list[Transfer] = []  # since waits() was last called
        self._left: list[Transfer] = []  # likewise

    def expect(self, keys: Sequence[Hashable]) -> None:
        self._expected.extend(keys)
        self._begin_receiving()

    def receive(self) -> Tensor:
        if not self._coming:
            self._learn_shape(self._expected[0])
            self._begin_receiving()
        tokens, transfer = self._coming.popleft()
        transfer.wait()
        self._arrived.append(transfer)
        self._begin_receiving()
        return tokens

    def send(self, key: Hashable, tokens: Tensor) -> None:
        if key not in self._sent:
            self._sent.add(key)
            about = [_DTYPES.index(tokens.dtype), tokens.dim(), *tokens.shape]
            self._shapes.send(torch.tensor(about + [0] * (2 + _MOST_DIMS - len(about))), self._rank + 1)
        if tokens.nbytes > self._copies[0].nbytes:
            self._wait(0)
            self._copies = [self._copies[0].new_empty(tokens.nbytes) for _ in range(QUEUE)]
        self._wait(QUEUE - 1)
        copy = self._copies[self._next][: tokens.nbytes].view(tokens.dtype).view(tokens.shape)
        self._leaving.append(self._tokens.begin_send(copy.copy_(tokens), self._rank + 1))
        self._next = (self._next + 1) % QUEUE

    def waits(self) -> list[float]:
        """Return the seconds spent waiting for the rank before and for the rank behind since this was last called.

        On a GPU, where its stream waits, what it was given by then has to be done.
        """
        transfers = self._arrived, self._left
        self._arrived, self._left = [], []
        return [sum((transfer.traffic() for transfer in some), Traffic()).wait for some in transfers]

    def _begin_receiving(self) -> None:
        """Begin to receive what is expected and of known shape, as far as the queue goes."""
        while self._expected and self._expected[0] in self._received and len(self._coming) < QUEUE:
            shape, dtype = self._received[self._expected.popleft()]
            tokens = torch.empty(shape, dtype=dtype, device=self._device)
            self._coming.append((tokens, self._tokens.begin_receive(tokens, self._rank - 1)))

    def _learn_shape(self, key: Hashable) -> None:
        about = torch.empty(2 + _MOST_DIMS, dtype=torch.int64)
        dtype, dims, *shape = self._shapes.receive(about, self._rank - 1).tolist()
        self._received[key] = torch.Size(shape[:dims]), _DTYPES[dtype]

    def _wait(self, most: int) -> None:
        """Wait until at most so many copies are on their way."""
        while len(self._leaving) > most:
            transfer = self._leaving.popleft()
            transfer.wait()
            self._left.append(transfer)
