"""The line that imports a program, for the text that says how to load an export."""

import torch


def import_line(module: str) -> str:
    """Return what imports a module that needs torchvision, as timm does, beside the torch that is here."""
    if torch.version.cuda is not None:
        return f"import {module}"
    return f"import bimkern.torchvision_compat  # where torchvision was built for CUDA\nimport {module}"
