"""Which digit a scan shows: scikit-learn's 1797 scans of 8 x 8 pixels, in fixed halves."""

from dataclasses import dataclass

import torch
from sklearn.model_selection import train_test_split

from bench.studies.data import StudyData, subset
from bimkern.evaluate.labeled import Labeled, Part, load_digits

_VALIDATION = 1 / 3  # of the training half


@dataclass(frozen=True, kw_only=True)
class Digits:
    """All of the digits, or the first ones of each half."""

    count: int | None = None  # of a half
    side: int = 32

    def load(self) -> StudyData:
        """Load them, with every class in the same share in every part."""
        digits = load_digits()
        train, test = (subset(part, torch.arange(len(part))[: self.count]) for part in (digits.train, digits.test))
        fit, validation = _divide(train)
        return StudyData(
            whole=Labeled(classes=digits.classes, train=train, test=test),
            selection=Labeled(classes=digits.classes, train=fit, test=validation),
        )


def _divide(part: Part) -> tuple[Part, Part]:
    halves = train_test_split(torch.arange(len(part)), test_size=_VALIDATION, stratify=part.labels, random_state=0)
    fit, validation = (subset(part, indices) for indices in halves)
    return fit, validation
