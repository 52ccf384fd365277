import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.inference.abstention import (
    area_under_risk_coverage,
    confidence,
    risk_coverage,
    threshold_for_coverage,
)


def test_confidence_is_the_largest_probability():
    assert confidence(np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]])).tolist() == [0.5, 0.9]


def test_risk_coverage_by_hand():
    # Surest first: right, wrong and right (equally sure), wrong.
    confidences = np.array([0.5, 0.7, 0.9, 0.7])
    is_right = np.array([False, False, True, True])
    coverage, risk = risk_coverage(confidences, is_right)
    np.testing.assert_allclose(coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(risk, [0.0, 1 / 3, 0.5])
    # One image at risk 0, two at 1/3, one at 1/2.
    assert area_under_risk_coverage(coverage, risk) == pytest.approx((0 + 2 / 3 + 1 / 2) / 4)


answers = st.lists(
    st.tuples(st.sampled_from([0.4, 0.6, 0.61, 0.9, 1.0]) | st.floats(0, 1), st.booleans()),
    min_size=1,
    max_size=30,
)


@given(answers, st.randoms())
def test_the_curve_agrees_with_a_plain_loop(rows, random):
    confidences, is_right = (np.array(column) for column in zip(*rows, strict=True))
    coverage, risk = risk_coverage(confidences, is_right)
    points = []
    for threshold in sorted(set(confidences), reverse=True):
        answered = [right for sure, right in rows if sure >= threshold]
        points.append((len(answered) / len(rows), 1 - sum(answered) / len(answered)))
    np.testing.assert_allclose(np.column_stack([coverage, risk]), points, atol=1e-12)
    # The mean over images of the risk at their own confidence.
    risks = [1 - np.mean([r for s, r in rows if s >= sure]) for sure, _ in rows]
    assert area_under_risk_coverage(coverage, risk) == pytest.approx(np.mean(risks), abs=1e-12)
    random.shuffle(rows)
    shuffled = risk_coverage(*(np.array(column) for column in zip(*rows, strict=True)))
    np.testing.assert_array_equal(shuffled, (coverage, risk))


@pytest.mark.parametrize(
    ("share", "threshold"),
    [(1.0, 0.0), (0.95, 0.0), (0.9, 0.15), (0.8, 0.25), (0.31, 0.65), (0.3, 0.75), (0.01, 0.95)],
)
def test_coverage_thresholds_by_hand(share, threshold):
    confidences = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    found = threshold_for_coverage(confidences[::-1], share)
    assert found == pytest.approx(threshold)
    assert (confidences >= found).mean() >= share


def test_equally_sure_images_are_answered_together():
    assert threshold_for_coverage(np.array([0.5, 0.5, 0.5, 0.9]), 0.5) == 0.0
    assert threshold_for_coverage(np.array([0.5, 0.5, 0.5, 0.9]), 0.25) == pytest.approx(0.7)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_shares_out_of_range(share):
    with pytest.raises(InputError) as caught:
        threshold_for_coverage(np.array([0.5]), share)
    assert str(caught.value) == (
        f"the share of answered images asked for is {share}; pass a share above 0 and at most 1."
    )


def test_no_images():
    for call in (
        lambda: threshold_for_coverage(np.array([]), 0.5),
        lambda: risk_coverage(np.array([]), np.array([], dtype=bool)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == ("there are no images to answer; pass at least one confidence.")
