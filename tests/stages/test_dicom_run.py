"""DICOM files with patient ids, from the folder to the exported model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage.color
import skimage.data

import cvpipe
from cvpipe import frames
from cvpipe.runs import Run
from tests.conftest import run_cvpipe
from tests.data.odd_files import dicom_of

pytestmark = pytest.mark.slow  # 40 seconds: a whole run with a network

TILE = 80
NUM_PATIENTS = 16
# Two or three images of each patient.
IMAGES_OF = {patient: 2 + patient % 2 for patient in range(NUM_PATIENTS)}


def patient_id(patient: int) -> str:
    """Name a patient as a hospital might; nothing else in a run looks like it."""
    return f"Müller^{70_431 + patient}"


def tiles(name: str) -> list[np.ndarray]:
    """Cut a photo into tiles of 12 bits that do not overlap."""
    grey = skimage.color.rgb2gray(getattr(skimage.data, name)())
    rows, columns = (length // TILE for length in grey.shape)
    corners = [(TILE * row, TILE * column) for row in range(rows) for column in range(columns)]
    cut = [grey[top : top + TILE, left : left + TILE] for top, left in corners]
    return [np.rint(4095 * tile).astype(np.uint16) for tile in cut]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> pd.DataFrame:
    """Two classes of eight patients each; the table says whose each image is."""
    root = tmp_path_factory.mktemp("hospital") / "scans"
    photos = {"0": tiles("coffee"), "NA": tiles("astronaut")}
    rows = []
    for patient, number in IMAGES_OF.items():
        label = "NA" if patient % 4 < 2 else "0"
        for _ in range(number):
            # The names of the files tell nothing of patients, their order neither.
            image_id = f"{label}/{len(rows) * 37 % 101:03}.dcm"
            write_scan(root / image_id, photos[label].pop(), patient)
            rows.append((image_id, patient))
    table = pd.DataFrame(rows, columns=["image_id", "patient"])
    table.attrs["root"] = root
    table.attrs["new"] = write_scan(root.parent / "new.dcm", photos["0"].pop(), 99)
    return table


def write_scan(path: Path, values: np.ndarray, patient: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    who = {"PatientID": patient_id(patient), "PatientName": f"Name^{patient_id(patient)}"}
    path.write_bytes(
        dicom_of(values, BitsStored=12, HighBit=11, SpecificCharacterSet="ISO_IR 192", **who)
    )
    return path


@pytest.fixture(scope="module")
def run(scans) -> Run:
    cwd = scans.attrs["root"].parent
    settings = ("--set", "threads=2", "--set", "evaluate.resamples=100")
    answer = run_cvpipe("run", "scans", "--preset", "quick", *settings, cwd=cwd)
    assert answer.returncode == 0, answer.stderr
    return cvpipe.open_run(next((cwd / "runs").glob("scans-*")))


def test_no_patient_stands_in_two_splits(run, scans):
    manifest = run.manifest().merge(scans, on="image_id", validate="one_to_one")
    assert len(manifest) == len(scans) == 40
    assert set(manifest["split"]) == {"train", "val", "test"}
    assert (manifest.groupby("patient")["split"].nunique() == 1).all()
    assert (manifest.groupby("patient")["group"].nunique() == 1).all()
    # They are kept together because of their ids: a plain random split parts them.
    assert (manifest.groupby("patient")["careless"].nunique() > 1).any()


def test_no_patient_id_remains_anywhere_in_the_run(run):
    secrets = [name.encode() for name in ("Müller", "M\\u00fcller", "Name^", "ller^70")]
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert {".csv", ".json", ".html", ".keras"} <= {path.suffix for path in files}
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path


def test_the_bundle_predicts_a_new_scan_like_the_run(run, scans):
    new = scans.attrs["new"]
    (bundle,) = run.export_path.iterdir()
    of_run = cvpipe.load(run.path, bundle.name).predict_proba([new])
    of_bundle = cvpipe.load(bundle).predict_proba([new])
    probabilities = frames.probabilities_of(of_run)
    np.testing.assert_allclose(frames.probabilities_of(of_bundle), probabilities, atol=1e-6)
    assert frames.predicted_labels(of_bundle).tolist() == ["0"]
    assert probabilities.max() < 1
