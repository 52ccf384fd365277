"""Captions of views, word for word."""

import pytest

from cvpipe.data.augment import UNCHANGED, View, draw_view
from cvpipe.data.view_words import describe_view
from cvpipe.sections import AugmentSection

SIZE = (100, 200)  # wider than high, so that exchanging the sides shows


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (UNCHANGED, "as it is"),
        (View(box=(10, 20, 62, 100)), "31 % of the area"),
        (View(box=(0, 0, 100, 200)), "100 % of the area"),
        (View(moved=(3, 0)), "moved 3 px down"),
        (View(moved=(-3, 12)), "moved 3 px up and 12 px right"),
        (View(moved=(0, -12)), "moved 12 px left"),
        (View(mirrored=True), "mirrored"),
        (View(flipped=True), "upside down"),
        (View(mirrored=True, flipped=True), "mirrored, upside down"),
        (View(quarter_turns=1), "turned 90° left"),
        (View(quarter_turns=2), "turned 180°"),
        (View(quarter_turns=3), "turned 90° right"),
        (View(degrees=4.26), "turned 4.3° left"),
        (View(degrees=-4.26), "turned 4.3° right"),
        (View(shear_degrees=-3.0), "slanted -3.0°"),
        (View(scale=1.08), "size x 1.08"),
        (View(shifts=(0.08, -0.05)), "shifted 8 % down and 5 % left"),
        (View(shifts=(-0.08, 0.05)), "shifted 8 % up and 5 % right"),
        (View(brightness=1.12), "brightness x 1.12"),
        (View(contrast=0.9), "contrast x 0.90"),
        (View(saturation=1.05), "saturation x 1.05"),
        (View(light=(3.2, -1.6, -0.2)), "red +3 green -2 blue +0"),
        (View(hue=0.02), "hue +7°"),
        (View(hue=-0.5), "hue -180°"),
        (View(blur=1.24), "blurred by 1.2 px"),
        (View(noise=3.26, noise_seed=7), "noise of 3.3 grey levels"),
        (View(erased=(0.1, 0.2, 0.3, 0.4)), "12 % covered"),
    ],
)
def test_a_view_is_described(view, words):
    assert describe_view(view, SIZE) == words


def test_phrases_stand_in_the_order_of_what_happens():
    view = View(
        box=(0, 0, 50, 100), moved=(1, 0), mirrored=True, flipped=True, quarter_turns=2,
        degrees=1.0, shifts=(0.1, 0.0), scale=1.1, shear_degrees=2.0, brightness=1.1, contrast=1.2,
        saturation=1.3, hue=0.1, light=(1.0, 1.0, 1.0), blur=1.0, noise=2.0,
        erased=(0.0, 0.0, 0.5, 0.5),
    )  # fmt: skip
    assert describe_view(view, SIZE) == (
        "25 % of the area, moved 1 px down, mirrored, upside down, turned 180°, slanted +2.0°, "
        "turned 1.0° left, size x 1.10, shifted 10 % down, brightness x 1.10, contrast x 1.20, "
        "saturation x 1.30, red +1 green +1 blue +1, hue +36°, blurred by 1.0 px, "
        "noise of 2.0 grey levels, 25 % covered"
    )


def test_every_part_of_a_view_is_told():
    """A setting that is added later must not go without words."""
    changed = {
        "box": (0, 0, 9, 9), "moved": (1, 1), "mirrored": True, "flipped": True,
        "quarter_turns": 1, "degrees": 1.0, "shifts": (0.1, 0.1), "scale": 2.0,
        "shear_degrees": 1.0, "brightness": 2.0, "contrast": 2.0, "saturation": 2.0, "hue": 0.1,
        "light": (1.0, 1.0, 1.0), "blur": 1.0, "noise": 1.0, "erased": (0.0, 0.0, 0.5, 0.5),
    }  # fmt: skip
    assert set(changed) == set(View._fields) - {"noise_seed"}  # it changes nothing by itself
    told = {describe_view(View(**{name: value}), SIZE) for name, value in changed.items()}
    assert len(told) == len(changed)
    assert "as it is" not in told


def test_what_presets_draw_is_described():
    settings = AugmentSection.model_validate({"preset": "natural"})
    views = [draw_view(settings, f"0/{n}/0/a", SIZE, (224, 224), "stretch") for n in range(20)]
    words = [describe_view(view, SIZE) for view in views]
    assert all(text.split(" % of the area, ")[0] in map(str, range(50, 101)) for text in words)
    assert {text.split(", ")[1] for text in words} > {"mirrored"}
    assert all("saturation x " in text for text in words)
