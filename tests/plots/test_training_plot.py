import numpy as np
import pandas as pd
import pytest

from cvpipe.plots.svg import build_panels, figure_to_svg
from cvpipe.plots.training import MAX_DOTTED, plot_training

NAN, INF = float("nan"), float("inf")
HISTORY = pd.DataFrame(
    {
        "epoch": [1.0, 2.0, 3.0, 4.0],
        "train_loss": [0.9, 0.5, 0.3, 0.1],
        "train_accuracy": [0.6, 0.8, 0.9, 0.99],
        "val_loss": [0.8, 0.6, 0.4, 0.7],
        "val_accuracy": [0.65, 0.7, 0.85, 0.8],
    }
)


def drawn(history=HISTORY, kept=3):
    figure, panels = build_panels(8, 3, 2)
    assert plot_training(history, kept, panels) is panels
    return figure, panels


def curves(ax):
    lines = {line.get_label(): line for line in ax.lines}
    return {name: line for name, line in lines.items() if name in ("training", "validation")}


@pytest.mark.parametrize(("number", "quantity"), [(0, "loss"), (1, "accuracy")])
def test_each_panel_has_the_curves_of_its_quantity(number, quantity):
    _, panels = drawn()
    lines = curves(panels[number])
    assert list(lines) == ["training", "validation"]
    for part, name in (("train", "training"), ("val", "validation")):
        assert lines[name].get_xdata().tolist() == [1, 2, 3, 4]
        assert lines[name].get_ydata().tolist() == HISTORY[f"{part}_{quantity}"].tolist()
    assert panels[number].get_ylabel() == quantity
    assert panels[number].get_xlabel() == "epoch"


def test_the_curves_can_be_told_apart_without_colour():
    _, panels = drawn()
    for ax in panels:
        styles = [line.get_linestyle() for line in curves(ax).values()]
        assert len(set(styles)) == 2
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [*curves(ax)]


@pytest.mark.parametrize("kept", [1, 3, 4])
def test_the_kept_epoch_is_marked_at_its_validation_value(kept):
    _, panels = drawn(kept=kept)
    for ax, quantity in zip(panels, ("loss", "accuracy"), strict=True):
        (ring,) = ax.collections
        assert ring.get_offsets().tolist() == [[kept, HISTORY[f"val_{quantity}"][kept - 1]]]
        (mark,) = (line for line in ax.lines if line.get_linestyle() == ":")
        assert mark.get_xdata() == [kept, kept]
        assert [text.get_text() for text in ax.texts] == [f"epoch {kept} kept"]


def test_without_validation_images_the_ring_is_on_the_training_curve():
    _, panels = drawn(HISTORY.assign(val_loss=NAN, val_accuracy=NAN), kept=4)
    for ax, value in zip(panels, (0.1, 0.99), strict=True):
        assert list(curves(ax)) == ["training"]
        assert ax.collections[0].get_offsets().tolist() == [[4, value]]


def test_what_is_not_finite_is_not_drawn():
    figure, panels = drawn(HISTORY.assign(val_loss=[INF, 0.6, NAN, 0.5]), kept=4)
    np.testing.assert_array_equal(
        curves(panels[0])["validation"].get_ydata(), [np.nan, 0.6, np.nan, 0.5]
    )
    svg = figure_to_svg(figure, "some curves")
    assert "nan" not in svg
    assert "inf" not in svg


def test_nothing_finite_leaves_an_empty_panel():
    columns = dict.fromkeys(("train_loss", "val_loss"), NAN)
    _, panels = drawn(HISTORY.assign(**columns))
    assert not curves(panels[0])
    assert not panels[0].collections
    assert panels[0].get_legend() is None
    assert len(curves(panels[1])) == 2


@pytest.mark.parametrize(
    ("number", "marker"), [(1, "o"), (MAX_DOTTED, "o"), (MAX_DOTTED + 1, ""), (300, "")]
)
def test_few_epochs_are_dots_and_ticks_are_epochs(number, marker):
    history = pd.DataFrame({name: np.linspace(0.4, 0.9, number) for name in HISTORY})
    history["epoch"] = np.arange(1.0, number + 1)
    figure, panels = drawn(history, kept=number)
    figure.canvas.draw()
    for ax in panels:
        assert all(line.get_marker() == marker for line in curves(ax).values())
        low, high = ax.get_xlim()
        assert 0 < low < 1
        assert high > number
        ticks = [at for at in ax.get_xticks() if low <= at <= high]
        assert ticks
        assert all(at == round(at) >= 1 for at in ticks)


def test_accuracies_are_in_percent_and_end_at_one():
    _, panels = drawn()
    assert panels[1].yaxis.get_major_formatter()(0.85, 0) == "85\u00a0%"
    assert panels[1].get_ylim()[1] <= 1.02
