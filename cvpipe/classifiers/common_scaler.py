"""Scaling that leaves the columns of a feature in proportion to one another."""

from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler


class CommonScaler(StandardScaler):
    """Centre each column, and divide all by the same number: their root mean square spread.

    A column that hardly varies stays small. Divided by its own spread, it would get a weight so
    large that the classifier follows any change in it, as when the network behind it is
    fine-tuned.
    """

    def fit(self, features: Any, targets: Any = None, sample_weight: Any = None) -> "CommonScaler":
        """Measure the columns of rows; see `sklearn.preprocessing.StandardScaler.fit`."""
        super().fit(features, targets, sample_weight)
        spread = np.sqrt(np.mean(self.var_)) or 1.0
        self.scale_ = np.full_like(self.var_, spread)
        return self
