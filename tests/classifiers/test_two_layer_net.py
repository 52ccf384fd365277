"""The two-layer network learns as well from 401 rows as from 400."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.classifiers.two_layer_net import even_batch_size


@given(st.integers(1, 20_000))
def test_no_batch_is_small(num_rows):
    size = even_batch_size(num_rows)
    last = num_rows % size or size
    assert 1 <= size <= min(200, num_rows)
    assert last >= size - 14 or num_rows < 2_000
    assert last >= size / 2


def test_as_scikit_learn_where_batches_are_even():
    assert [even_batch_size(n) for n in (1, 199, 200, 400, 2_000)] == [1, 199, 200, 200, 200]


@pytest.mark.parametrize("learning_rate", [0.01, 0.1])
def test_one_row_more_does_no_harm(learning_rate):
    def accuracy(num_rows: int) -> float:
        """Of the same 500 other rows."""
        rng = np.random.default_rng(0)
        targets = rng.integers(0, 2, 901)
        features = rng.normal(size=(901, 50))
        features[:, :5] += targets[:, None]
        build = CLASSIFIERS["two_layer_net"].build
        net = build(weight_decay=1e-3, learning_rate=learning_rate)
        net.fit(features[:num_rows], targets[:num_rows])
        assert net[-1].batch_size == "auto"  # what was given, also after the fit
        return float((net.predict(features[401:]) == targets[401:]).mean())

    assert accuracy(401) == pytest.approx(accuracy(400), abs=0.04)
    assert accuracy(401) > 0.78
