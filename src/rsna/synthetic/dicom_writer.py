"""Writing one image as a DICOM file with the tags of the challenge's files."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import disable_value_validation
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, SecondaryCaptureImageStorage, generate_uid

from rsna.core.files import write_then_rename

JPEG_QUALITY = 88
PIXEL_SPACING = {"AP": 0.168, "PA": 0.143}  # mm; the commonest of each view
SAME_IN_ALL = {"SpecificCharacterSet": "ISO_IR 100", "SOPClassUID": SecondaryCaptureImageStorage, "Modality": "CR"}
SAME_IN_ALL |= {"ConversionType": "WSD", "BodyPartExamined": "CHEST", "PhotometricInterpretation": "MONOCHROME2"}
SAME_IN_ALL |= {"LossyImageCompression": "01", "LossyImageCompressionMethod": "ISO_10918_1"}
BITS = {"SamplesPerPixel": 1, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}


def write_dicom(path: Path, image: NDArray[np.uint8], patient_id: str, sex: str, age: int, view: str) -> None:
    """Write an image (rows, cols) with the tags of the challenge's files, JPEG Baseline."""
    ok, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok
    # the challenge's ages are bare numbers, which is no valid DICOM age
    with disable_value_validation():
        dataset = pydicom.Dataset()
        for keyword, value in dicom_tags(patient_id, sex, age, view, image.shape).items():
            setattr(dataset, keyword, value)
        dataset.PixelData = encapsulate([jpeg.tobytes()])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        with write_then_rename(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)


def dicom_tags(patient_id: str, sex: str, age: int, view: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Keyword -> value of every tag of the challenge's files but the pixels."""
    patient = {"PatientName": patient_id, "PatientID": patient_id, "PatientSex": sex, "PatientAge": str(age)}
    uids = {f"{k}InstanceUID": generate_uid(entropy_srcs=[patient_id, k]) for k in ("SOP", "Study", "Series")}
    study = {"StudyDate": "19010101", "StudyTime": "000000.00", "SeriesNumber": "1", "InstanceNumber": "1"}
    about = {"ViewPosition": view, "SeriesDescription": f"view: {view}", "PixelSpacing": [PIXEL_SPACING[view]] * 2}
    pixels = BITS | {"Rows": shape[0], "Columns": shape[1]}
    empty = ["AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "StudyID", "PatientOrientation"]
    return {**patient, **uids, **study, **about, **dict.fromkeys(empty, ""), **SAME_IN_ALL, **pixels}
