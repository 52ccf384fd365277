"""How often a classifier is right when it is this sure: the bins of a reliability diagram."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cvpipe.evaluation.intervals import clustered_wilson_interval
from cvpipe.evaluation.metrics import calibration_bins, is_correct
from cvpipe.evaluation.scoring import groups_of, sort_labelled
from cvpipe.frames import predicted_class_names, probabilities_of, targets_of

COLUMNS = ["confidence", "accuracy", "low", "high", "n"]


def reliability(
    predictions: pd.DataFrame, groups_by_image_id: Mapping[str, str] | pd.Series
) -> pd.DataFrame:
    """Compare confidence with accuracy in the bins of the calibration error.

    Args:
        predictions: A predictions table, all labels known.
        groups_by_image_id: The group of each image; it may know further images.

    Returns:
        One row per bin that holds an image, from unsure to sure: the mean `confidence` (the
        highest probability), the `accuracy` with its 95 % interval `low`, `high`, and the
        number of images `n`.

    Raises:
        InputError: As for `score_predictions`.

    References:
        Niculescu-Mizil and Caruana, "Predicting Good Probabilities with Supervised Learning",
        ICML 2005 (reliability diagrams); Guo et al., ICML 2017, section 2 (of the highest
        probability).
    """
    rows = sort_labelled(predictions)
    probabilities = probabilities_of(rows)
    facts = pd.DataFrame(
        {
            "confidence": probabilities.max(axis=1),
            "right": is_correct(
                targets_of(rows["label"], predicted_class_names(rows)), probabilities
            ),
            "group": groups_of(rows["image_id"], groups_by_image_id),
        }
    )
    table = []
    for _, images in facts.groupby(calibration_bins(np.asarray(facts["confidence"]))):
        right = images["right"].to_numpy()
        ends = clustered_wilson_interval(right, images["group"].to_numpy())
        table.append((images["confidence"].mean(), right.mean(), *ends, len(images)))
    return pd.DataFrame(table, columns=COLUMNS)
