"""Counts allocations of the host, where some tensors are without memory."""

from bimkern.train.memory.tracker import AllocationTracker


class OnHost(AllocationTracker):
    """Reports what has memory."""

    def _allocated(self, storage):
        if storage.device.type != "meta":
            super()._allocated(storage)
