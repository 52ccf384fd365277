"""The two-layer network of the lectures."""

from typing import Any

from sklearn.neural_network import MLPClassifier

BATCH_SIZES = range(200, 99, -1)


class TwoLayerNet(MLPClassifier):
    """scikit-learn's network, trained on batches that are nearly of one size.

    scikit-learn takes 200 rows at a time, and as the last batch of an epoch what is left: a step
    along the gradient of a single row is as large as one along the mean of 200, and decays the
    weights 200 times as much, so with 401 rows it undoes the epoch. `batch_size` is chosen anew in
    each fit, between 100 and 200; `alpha` counts, as in scikit-learn, per row of a batch.

    References:
        CS231n 2017, lecture 4.
    """

    batch_size: int | str

    def fit(self, features: Any, targets: Any, sample_weight: Any = None) -> "TwoLayerNet":
        """Train on rows; see `sklearn.neural_network.MLPClassifier.fit`."""
        given, self.batch_size = self.batch_size, even_batch_size(features.shape[0])
        try:
            return super().fit(features, targets, sample_weight)
        finally:
            self.batch_size = given


def even_batch_size(num_rows: int) -> int:
    """Choose the size of a batch so that the last one of an epoch is as large as can be.

    Example:
        >>> even_batch_size(401), even_batch_size(400), even_batch_size(50)
        (134, 200, 50)
    """
    if num_rows <= BATCH_SIZES[0]:
        return num_rows
    return min(BATCH_SIZES, key=lambda size: -num_rows % size)  # of equal ones the largest
