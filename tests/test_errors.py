import pytest

from cvpipe.errors import GateError, InputError, check_name, nearest_name


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("hgo", {"majority", "hog"}, "did you mean 'hog'?"),
        ("linear_svn", ["linear_svm", "softmax"], "did you mean 'linear_svm'?"),
        ("x", ["majority", "hog"], "choose one of ['hog', 'majority']."),
        ("x", [], "there is none to choose from."),
    ],
)
def test_nearest_name(name, choices, expected):
    assert nearest_name(name, choices) == expected


def test_check_name():
    assert check_name("feature", "hog", iter(["majority", "hog"])) == "hog"
    with pytest.raises(InputError) as caught:
        check_name("feature", "hgo", iter(["hog"]))  # an iterator can be read only once
    assert str(caught.value) == "unknown feature 'hgo'; did you mean 'hog'?"


def test_kinds_of_errors():
    assert issubclass(InputError, ValueError)
    assert not issubclass(GateError, ValueError)  # it is a result, not bad input
