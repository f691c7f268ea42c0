"""Test-time views: a box found in a view is mapped to the right place in the original image."""

import numpy as np
import pytest
import torch
from torch import nn

from rsna.data.dataset import ImageDataset, Samples
from rsna.data.letterbox import write_png
from rsna.data.loader import make_loader
from rsna.inference.predictor import predict_views, prediction_table
from rsna.inference.tta import TtaTransform, parse_transforms

CPU = torch.device("cpu")


class BrightSquare(nn.Module):
    """In place of a perfect network: returns the bounding box of the bright pixels."""

    def forward(self, images):
        return {"images": images}

    def decode(self, outputs):
        boxes = []
        for image in outputs["images"][:, 0]:
            rows, cols = torch.where(image > 127)
            edges = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
            boxes.append(torch.stack(edges) / image.shape[-1])
        return torch.stack(boxes)[:, None].float(), torch.ones(len(boxes), 1), torch.ones(len(boxes), 2) / 2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize(("rows", "cols"), [(1024, 1024), (2048, 1536), (700, 1400)])
def test_every_view_finds_the_same_box(tmp_path, size, rows, cols, precision):
    """From an image to the table in original pixels: within half a pixel for flips, 1 or 2 cached pixels for zooms."""
    scale = size / max(rows, cols)
    pad = [(size - round(cols * scale)) // 2, (size - round(rows * scale)) // 2]
    image = np.zeros((size, size), np.uint8)
    left, top, right, bottom = [int(size * share) for share in (0.3125, 0.375, 0.5625, 0.625)]
    image[top:bottom, left:right] = 255
    write_png(image, tmp_path / "a.png")
    geometry = np.array([[scale, scale, *pad]])
    samples = Samples(
        ["a"], [tmp_path / "a.png"], [np.zeros((0, 4))], np.zeros(1, int), geometry, np.array([[rows, cols]])
    )
    views = parse_transforms("plain,hflip", "1.0,0.9,1.2")
    assert views[0] == TtaTransform()
    assert len(views) == 6
    loader = make_loader(ImageDataset(samples), 1, 0, CPU)
    expected = np.array(
        [(left - pad[0]) / scale, (top - pad[1]) / scale, (right - left) / scale, (bottom - top) / scale]
    )
    for view, (boxes, confidence, _) in zip(
        views, predict_views(BrightSquare(), loader, views, CPU, precision), strict=True
    ):
        found = prediction_table(samples, boxes, confidence, size)[["x", "y", "width", "height"]].to_numpy()[0]
        tolerance = 0.5 if view.scale == 1 else 1.5 / scale
        assert found == pytest.approx(expected, abs=tolerance), view


def test_a_box_outside_the_image_gives_an_empty_row():
    samples = Samples(
        ["a", "b"],
        [],
        [np.zeros((0, 4))] * 2,
        np.zeros(2, int),
        np.array([[0.5, 0.5, 0, 16]] * 2),
        np.array([[64, 128]] * 2),
    )
    boxes = np.array([[[0.1, 0.0, 0.5, 0.2]], [[0.1, 0.2, 0.5, 0.5]]])  # the first lies in the black bar above
    table = prediction_table(samples, boxes, np.array([[0.9], [0.8]]), 64)
    assert table["patientId"].tolist() == ["a", "b"]
    assert table["confidence"].isna().tolist() == [True, False]
    assert table.iloc[1][["x", "y", "width", "height"]].tolist() == pytest.approx([12.8, 0, 51.2, 32])
