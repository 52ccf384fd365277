"""Which rows of val the choice is made on."""

import pandas as pd
import pytest

from cvpipe.data.splits import first_half
from cvpipe.stages.halves import MIN_GROUPS_OF_HALF, rows_for_choosing


def val_rows(num_images, num_groups, label_of_group):
    groups = [f"g{i % num_groups}" for i in range(num_images)]
    return pd.DataFrame({"group": groups, "label": [label_of_group(g) for g in groups]})


def parity(group):
    return "even" if int(group[1:]) % 2 else "odd"


def test_a_large_val_is_halved_by_group():
    val = val_rows(300, 300, parity)
    used = rows_for_choosing(val)
    assert used.tolist() == first_half(val["group"].tolist()).tolist()
    assert 100 < used.sum() < 200


@pytest.mark.parametrize(
    "val",
    [
        val_rows(199, 199, parity),  # few images
        val_rows(600, MIN_GROUPS_OF_HALF, parity),  # many images, but of few patients
        # one class lies wholly in one half
        val_rows(600, 300, lambda g: str(first_half([g])[0])),
    ],
)
def test_a_val_whose_halves_would_say_little_is_used_whole(val):
    assert rows_for_choosing(val).all()
