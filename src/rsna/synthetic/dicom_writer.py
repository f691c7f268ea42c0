"""Write an image as a DICOM file with the same tags as the challenge's files."""

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
PIXEL_SPACING = {"AP": 0.168, "PA": 0.143}  # mm; the most common value of each view
SAME_IN_ALL: dict[str, Any] = {"SpecificCharacterSet": "ISO_IR 100", "Modality": "CR", "BodyPartExamined": "CHEST"}
SAME_IN_ALL |= {"SOPClassUID": SecondaryCaptureImageStorage, "ConversionType": "WSD", "SeriesNumber": "1"}
SAME_IN_ALL |= {"StudyDate": "19010101", "StudyTime": "000000.00", "InstanceNumber": "1", "AccessionNumber": ""}
SAME_IN_ALL |= {"ReferringPhysicianName": "", "PatientBirthDate": "", "StudyID": "", "PatientOrientation": ""}
SAME_IN_ALL |= {"LossyImageCompression": "01", "LossyImageCompressionMethod": "ISO_10918_1", "SamplesPerPixel": 1}
SAME_IN_ALL |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
SAME_IN_ALL["PhotometricInterpretation"] = "MONOCHROME2"


def write_dicom(path: Path, image: NDArray[np.uint8], patient_id: str, sex: str, age: int, view: str) -> None:
    """Write an image (rows, cols) as JPEG Baseline; patient_id: Kaggle's patientId; age in years; view: AP or PA."""
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    patient = {"PatientName": patient_id, "PatientID": patient_id, "PatientSex": sex, "PatientAge": str(age)}
    uids = {f"{k}InstanceUID": generate_uid(entropy_srcs=[patient_id, k]) for k in ("SOP", "Study", "Series")}
    about = {"ViewPosition": view, "SeriesDescription": f"view: {view}", "PixelSpacing": [PIXEL_SPACING[view]] * 2}
    size = {"Rows": image.shape[0], "Columns": image.shape[1]}
    # in the challenge's files an age is a bare number, which is not valid DICOM
    with disable_value_validation():
        dataset = pydicom.Dataset()
        for keyword, value in {**patient, **uids, **about, **SAME_IN_ALL, **size}.items():
            setattr(dataset, keyword, value)
        dataset.PixelData = encapsulate([jpeg.tobytes()])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        with write_then_rename(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
