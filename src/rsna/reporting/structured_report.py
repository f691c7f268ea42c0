"""DICOM Structured Reports (TID 1500) of predicted boxes, by highdicom: one region with a confidence per box."""

from pathlib import Path
from typing import Any

import pandas as pd
from pydicom import FileDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from rsna.core.errors import UserError, optional
from rsna.core.files import write_then_rename
from rsna.data.boxes import xywh_to_xyxy
from rsna.data.competition import BOX_COLUMNS
from rsna.data.dicom import UnreadableDicom, as_unreadable, parse_dicom, read_file
from rsna.inference.image_files import safe_name

ALGORITHM, SCHEME = "rsna-pneumonia-workspace", "99RSNAPNEUMONIA"  # a private scheme: DICOM has no such codes
NOTE = "For research use only; not a medical device"


def check_format(format: str, paths: list[Path]) -> None:
    """Raise UserError if reports are asked for and highdicom is not installed, or a file is a PNG or JPEG."""
    if format == "dicom-sr":
        optional("highdicom", "requirements-infer.txt")
        for path in paths:
            if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
                raise UserError(f"{path}: format=dicom-sr is for DICOMs; name none but DICOMs in images=")


def write_reports(table: pd.DataFrame, files: list[str], folder: Path, run: dict[str, str]) -> int:
    """Write one report per file. Prints and counts the files whose header lacks fields that a report has to repeat."""
    missing = 0
    for file in files:
        try:
            with as_unreadable("its header lacks what a report repeats"):
                report = make_report(parse_dicom(read_file(Path(file))), table[table["file"] == file], **run)
        except UnreadableDicom as error:
            print(f"{file}: no report: {error}")
            missing += 1
            continue
        with write_then_rename(folder / f"{safe_name(file)}.dcm") as temporary:
            report.save_as(temporary, enforce_file_format=True)
    return missing


def make_report(source: FileDataset, boxes: pd.DataFrame, run: str, version: str) -> Any:
    """A highdicom.sr.ComprehensiveSR for an image and the rows of its boxes; the same content gives the same UIDs."""
    sr: Any = optional("highdicom.sr", "requirements-infer.txt")
    if (age := str(source.get("PatientAge") or "")).isdigit():  # the challenge's files lack the unit
        source.PatientAge = f"{int(age):03}Y"
    seed = [source.SOPInstanceUID, run, version, boxes.drop(columns="file").to_csv(index=False)]
    notes = [NOTE, *(f"Flagged: {flag}" for flag in boxes["flag"].unique() if flag)]
    common = {
        "finding_type": Code("OPACITY", SCHEME, "Lung opacity"),
        "algorithm_id": sr.AlgorithmIdentification(f"{ALGORITHM}, run {run}", version, parameters=notes),
    }
    image, groups = sr.SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID), []
    boxes_xyxy = xywh_to_xyxy(boxes[BOX_COLUMNS].to_numpy(dtype=float))
    for k, (corners, confidence) in enumerate(zip(boxes_xyxy, boxes["confidence"].tolist(), strict=True)):
        region = sr.ImageRegion("POLYLINE", corners[[[0, 1], [2, 1], [2, 3], [0, 3], [0, 1]]], image)
        name = sr.TrackingIdentifier(generate_uid(entropy_srcs=[*seed, str(k)]), f"box {k + 1}")
        measured = [sr.Measurement(Code("CONFIDENCE", SCHEME, "Confidence"), confidence, codes.UCUM.NoUnits)]
        groups.append(sr.PlanarROIMeasurementsAndQualitativeEvaluations(name, region, measurements=measured, **common))
    series, instance, device = (generate_uid(entropy_srcs=[*seed, word]) for word in ("series", "instance", "device"))
    observer = sr.ObserverContext(codes.DCM.Device, sr.DeviceObserverIdentifyingAttributes(device, name=ALGORITHM))
    content = sr.MeasurementReport(sr.ObservationContext(observer), codes.SCT.PlainRadiography, groups)
    about = {"manufacturer": ALGORITHM, "series_description": NOTE}
    return sr.ComprehensiveSR([source], content, series, 1, instance, 1, **about)
