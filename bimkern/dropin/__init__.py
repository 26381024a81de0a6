"""Make masked image modeling code of other programs faster, in one line: `bimkern.dropin.patch(model)`."""

from bimkern.dropin.patch import DropinError, Patched, patch

__all__ = ["DropinError", "Patched", "patch"]
