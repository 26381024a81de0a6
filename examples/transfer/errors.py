"""The error that ends an example with one line."""

from bimkern.errors import BimkernError


class TransferError(BimkernError, ValueError):
    """An option or a data set cannot be used; the message says what would do."""
