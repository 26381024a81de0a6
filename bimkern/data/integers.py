"""The type of arrays of integers."""

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
