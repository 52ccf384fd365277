"""Augmentation settings that suit a kind of images, and why.

An augmentation is allowed where it keeps the label: where an expert who is shown the changed
picture would still give it the same name (CS231n 2017, lecture 7: label-preserving transforms).
The settings are those of `cvpipe.sections.AugmentSection`. They are places to start from, not
measured optima; what they bring is for the comparison on the user's own images to say.
"""

from typing import Any, NamedTuple


class AugmentPreset(NamedTuple):
    """Plain settings for a kind of images, and the reason for them."""

    reason: str
    settings: dict[str, Any]


AUGMENT_PRESETS = {
    "none": AugmentPreset("every image as it is", {}),
    "natural": AugmentPreset(
        "photos: left and right can be exchanged and light and distance vary, up and down do not",
        {
            "crop": "resized",
            "min_area": 0.5,
            "horizontal_flip": 0.5,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
        },
    ),
    "xray_mri": AugmentPreset(
        "scans: no colour to change, up and down have a meaning, devices differ in contrast, "
        "patients lie a little turned; set horizontal_flip to 0 where the side tells the label",
        {
            "crop": "resized",
            "min_area": 0.8,
            "max_stretch": 1.1,
            "horizontal_flip": 0.5,
            "rotation_degrees": 7.0,
            "brightness": 0.1,
            "contrast": 0.2,
        },
    ),
    "microscopy": AugmentPreset(
        "sections seen from above: all eight symmetries keep the label, stains vary a little",
        {
            "crop": "resized",
            "min_area": 0.8,
            "max_stretch": 1.1,
            "horizontal_flip": 0.5,
            "quarter_turns": True,
            "brightness": 0.1,
            "contrast": 0.1,
            "saturation": 0.1,
            "hue": 0.02,
        },
    ),
    "digits": AugmentPreset(
        "characters: a mirrored one is another one or none, a slanted or shifted one is the same",
        {
            "rotation_degrees": 10.0,
            "shift": 0.08,
            "zoom": 0.1,
            "shear_degrees": 8.0,
        },
    ),
}
