from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.features.grid import cell_borders, check_grid, grid_cells


@pytest.mark.parametrize(
    ("num_pixels", "num_cells", "expected"),
    [
        (8, 1, [0, 8]),
        (8, 2, [0, 4, 8]),
        (12, 4, [0, 3, 6, 9, 12]),
        (10, 4, [0, 3, 5, 8, 10]),  # 2.5 and 7.5 are rounded up
        (10, 3, [0, 3, 7, 10]),  # 3.33 and 6.67
        (5, 5, [0, 1, 2, 3, 4, 5]),
        (1, 1, [0, 1]),
    ],
)
def test_borders_by_hand(num_pixels, num_cells, expected):
    assert cell_borders(num_pixels, num_cells).tolist() == expected


@given(st.integers(1, 40), st.data())
def test_borders(num_cells, data):
    num_pixels = data.draw(st.integers(num_cells, 500))
    borders = cell_borders(num_pixels, num_cells)
    assert borders[0] == 0
    assert borders[-1] == num_pixels
    sizes = np.diff(borders)
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    for number, border in enumerate(borders.tolist()):
        distance = border - Fraction(number * num_pixels, num_cells)
        assert -Fraction(1, 2) < distance <= Fraction(1, 2)


@given(st.integers(1, 6), st.data())
def test_every_pixel_lies_in_one_cell(grid, data):
    height, width = (data.draw(st.integers(grid, 20)) for _ in range(2))
    visits = np.zeros((height, width), int)
    for cell in grid_cells((height, width), grid):
        visits[cell] += 1
    assert (visits == 1).all()


def test_cells_row_by_row():
    cells = grid_cells((4, 6), 2)
    assert cells == [
        (slice(0, 2), slice(0, 3)),
        (slice(0, 2), slice(3, 6)),
        (slice(2, 4), slice(0, 3)),
        (slice(2, 4), slice(3, 6)),
    ]


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_possible_grids(grid):
    check_grid("the feature", grid, (3, 8))


@pytest.mark.parametrize("grid", [-1, 0, 4, 1.5])
def test_impossible_grids(grid):
    message = rf"^grid of the feature is {grid}; choose one of \[1, 2, 3\]\.$"
    with pytest.raises(InputError, match=message):
        check_grid("the feature", grid, (3, 8))
