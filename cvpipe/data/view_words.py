"""Say in words what was drawn for a view: the captions of a contact sheet."""

from cvpipe.data.augment import View

QUARTER_TURNS = {1: "90° left", 2: "180°", 3: "90° right"}


def describe_view(view: View, size: tuple[int, int]) -> str:
    """Say what happens to an image, in the order in which it happens.

    Left and right of a turn are where the top of the image goes.

    Args:
        view: What was drawn.
        size: `(height, width)` in pixels of the upright image from which the view's box is cut.

    Returns:
        Phrases with commas between them; `"as it is"` where nothing is changed.

    Example:
        >>> describe_view(View(box=(0, 0, 30, 62), mirrored=True, brightness=1.12), (50, 60))
        '62 % of the area, mirrored, brightness x 1.12'
        >>> describe_view(View(degrees=-7.0, shifts=(0.08, 0.0)), (50, 60))
        'turned 7.0° right, shifted 8 % down'
    """
    return ", ".join([*_shape_words(view, size), *_pixel_words(view)]) or "as it is"


def _shape_words(view: View, size: tuple[int, int]) -> list[str]:
    words = []
    if view.box:
        share = view.box[2] * view.box[3] / (size[0] * size[1])
        words.append(f"{100 * share:.0f} % of the area")
    words += _directions("moved", view.moved, [f"{abs(steps)} px" for steps in view.moved])
    if view.mirrored:
        words.append("mirrored")
    if view.flipped:
        words.append("upside down")
    if view.quarter_turns:
        words.append(f"turned {QUARTER_TURNS[view.quarter_turns]}")
    if view.shear_degrees:
        words.append(f"slanted {view.shear_degrees:+.1f}°")
    if view.degrees:
        direction = "left" if view.degrees > 0 else "right"
        words.append(f"turned {abs(view.degrees):.1f}° {direction}")
    if view.scale != 1.0:
        words.append(f"size x {view.scale:.2f}")
    shares = [f"{100 * abs(share):.0f} %" for share in view.shifts]
    return words + _directions("shifted", view.shifts, shares)


def _directions(verb: str, offsets: tuple[float, float], told: list[str]) -> list[str]:
    parts = [
        f"{text} {ahead if offset > 0 else back}"
        for offset, text, (ahead, back) in zip(
            offsets, told, (("down", "up"), ("right", "left")), strict=True
        )
        if offset
    ]
    return [f"{verb} {' and '.join(parts)}"] if parts else []


def _pixel_words(view: View) -> list[str]:
    words = [
        f"{name} x {factor:.2f}"
        for name, factor in (
            ("brightness", view.brightness),
            ("contrast", view.contrast),
            ("saturation", view.saturation),
        )
        if factor != 1.0
    ]
    if view.light:
        added = zip(("red", "green", "blue"), view.light, strict=True)
        words.append(" ".join(f"{name} {round(levels):+d}" for name, levels in added))
    if view.hue:
        words.append(f"hue {round(360 * view.hue):+d}°")
    if view.blur:
        words.append(f"blurred by {view.blur:.1f} px")
    if view.noise:
        words.append(f"noise of {view.noise:.1f} grey levels")
    if view.erased:
        words.append(f"{100 * view.erased[2] * view.erased[3]:.0f} % covered")
    return words
