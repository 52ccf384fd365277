from importlib import metadata

import pytest

from cvpipe.stages import doctor
from cvpipe.stages.doctor import Diagnosis, diagnose


@pytest.fixture
def dicom_line(monkeypatch):
    """Run the doctor with no look at devices, which loads TensorFlow; return a function."""
    monkeypatch.setattr(doctor, "list_devices", lambda: ["CPU:0"])

    def look():
        [line] = [diagnosis for diagnosis in diagnose() if diagnosis.name == "DICOM"]
        return line

    return look


def test_dicom_is_told(dicom_line):
    assert dicom_line() == Diagnosis("DICOM", True, f"pydicom {metadata.version('pydicom')}")


def test_a_missing_extra_is_no_failure(dicom_line, monkeypatch):
    installed = metadata.version

    def version(name):
        if name == "pydicom":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    advice = "not installed; to read DICOM files: python -m pip install 'cvpipe[dicom]'"
    assert dicom_line() == Diagnosis("DICOM", True, advice)
