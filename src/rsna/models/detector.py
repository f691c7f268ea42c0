"""Several boxes per image: objectness and a box at each location of a feature map of stride 8, then NMS."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import box_convert, generalized_box_iou_loss

from rsna.core.config import setting
from rsna.core.errors import UserError
from rsna.models.protocol import BoxesOfImages, Outputs, Targets
from rsna.models.pyramid import ASSIGNMENT_SIGMA, PyramidModel
from rsna.models.registry import register

PRIOR = 0.01  # objectness of an untrained network, as in RetinaNet (Lin et al. 2017)
LEAST_HEAT = 0.1  # locations with a lower heat do not train their box
VOTE_IOU = 0.4  # a candidate with a higher IoU with a kept box takes part in the voting on its position
CANDIDATES, MAX_BOXES = 64, 6  # the locations with the highest objectness; the most boxes kept per image


@dataclass(frozen=True)
class Settings:
    box_weight: float = setting(1.0, "weight of the box loss", limits=(1e-8, 1e4))
    dropout: float = setting(0.2, "dropout before the last layer of the classifier", limits=(0, 0.95))
    fpn_channels: int = setting(128, "channels of the feature pyramid, a multiple of 16", limits=(16, 4096))
    convs: int = setting(2, "convolutions between the feature pyramid and the outputs", limits=(0, 8))
    nms_iou: float = setting(
        0.1, "boxes of a view that overlap a more confident one by more are dropped", limits=(0, 1)
    )


@register("detector", Settings)
class DetectorModel(PyramidModel):
    """The boxes of the most likely locations of a feature pyramid.

    The target of the objectness is a Gaussian around the centre of each true box, as in CenterNet (Zhou et al. 2019,
    arXiv:1904.07850), times the IoU of the box predicted at that location. Its loss is the quality focal loss (Li et
    al. 2020, arXiv:2006.04388). So the objectness ranks boxes by how well they fit, which the metric rewards.
    """

    def __init__(self, encoder: nn.Module, size: int, num_classes: int, settings: Settings) -> None:
        """Raises UserError if fpn_channels is not a multiple of 16."""
        if settings.fpn_channels % 16:
            raise UserError(f"fpn_channels={settings.fpn_channels}: must be a multiple of 16")
        super().__init__(encoder, num_classes, settings.fpn_channels, settings.dropout, settings.convs)
        self.settings = settings

    def init_priors(self, boxes_cxcywh: BoxesOfImages, class_rates: Tensor) -> None:
        """Start with an objectness of PRIOR, as most locations have no box, the mean box size and the class rates."""
        log_size = torch.from_numpy(np.log(np.concatenate(list(boxes_cxcywh))[:, 2:]).mean(axis=0)).float()
        self.set_priors(torch.tensor([PRIOR]), log_size, class_rates)

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Scalars: loss = class + objectness + box_weight * box; all but loss are detached.

        class: cross-entropy of the image class. objectness: quality focal loss, summed over all locations and divided
        by the number of true boxes. box: GIoU loss (Rezatofighi et al. 2019) + 4 * L1, averaged over the locations near
        the centre of a true box, weighted by their heat.
        """
        heat, target = assign(targets["boxes"], targets["mask"], outputs["centres"])
        predicted_xyxy, target_xyxy = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (outputs["boxes"], target))
        quality = heat * paired_iou(predicted_xyxy.detach(), target_xyxy)
        error = (quality - outputs["objectness"].sigmoid()).square()
        focal = error * binary_cross_entropy_with_logits(outputs["objectness"], quality, reduction="none")
        objectness = focal.sum() / targets["mask"].sum().clamp(min=1)
        weight = heat * (heat > LEAST_HEAT)
        distance = generalized_box_iou_loss(predicted_xyxy, target_xyxy) + 4 * (outputs["boxes"] - target).abs().mean(2)
        box = (weight * distance).sum() / weight.sum().clamp(min=1)
        entropy = cross_entropy(outputs["logits"], targets["label"])
        loss = entropy + objectness + self.settings.box_weight * box
        return {"loss": loss, "class": entropy.detach(), "objectness": objectness.detach(), "box": box.detach()}

    def decode(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, 6, 4) xyxy in [0, 1], objectness (B, 6) in [0, 1], class probabilities (B, classes).

        Where an image has fewer boxes, the remaining rows are zeros.
        """
        boxes_xyxy = box_convert(outputs["boxes"], "cxcywh", "xyxy").clamp(0, 1)
        kept = select_boxes(boxes_xyxy, outputs["objectness"].sigmoid(), self.settings.nms_iou)
        return *kept, outputs["logits"].softmax(dim=1)


def assign(boxes_cxcywh: Tensor, mask: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Assign a true box to each location: the heat (B, L) in [0, 1], and the box with the highest heat (B, L, 4).

    boxes_cxcywh: (B, N, 4) true boxes; mask: (B, N), False for padding; centres: (L, 2) of the locations. The heat is a
    Gaussian of the distance from the box's centre, in units of the box's sides. It is scaled to 1 at the nearest
    location, so that a small box between locations counts in full. It is 0 everywhere if an image has no box.
    """
    boxes = torch.where(mask[..., None], boxes_cxcywh, 0.5)  # padding has sides of 0, which cannot be divided by
    distance = ((centres - boxes[:, :, None, :2]) / boxes[:, :, None, 2:]).square().sum(3)
    nearest = distance.amin(dim=2, keepdim=True)
    heat = ((distance - nearest) / (-2 * ASSIGNMENT_SIGMA**2)).exp() * mask[..., None]
    hottest, box = heat.max(dim=1)
    return hottest, boxes.gather(1, box[..., None].expand(-1, -1, 4))


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Elementwise IoU of boxes xyxy: (..., 4), (..., 4) -> (...)."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (first, second)]
    return overlap / (areas[0] + areas[1] - overlap).clamp(min=1e-9)


def select_boxes(boxes_xyxy: Tensor, scores: Tensor, nms_iou: float) -> tuple[Tensor, Tensor]:
    """NMS with box voting: boxes (B, L, 4), scores (B, L) -> boxes (B, MAX_BOXES, 4), scores (B, MAX_BOXES).

    Each kept box is replaced by the mean of the candidates whose IoU with it is above VOTE_IOU, weighted by their
    squared scores (Gidaris and Komodakis 2015). Where fewer boxes are kept, the remaining rows are zeros.
    """
    scores, order = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
    boxes_xyxy = boxes_xyxy.gather(1, order[..., None].expand(-1, -1, 4))
    left, kept_boxes, kept_scores = scores.clone(), [], []
    for _ in range(MAX_BOXES):
        score, best = left.max(dim=1)
        top = boxes_xyxy.gather(1, best[:, None, None].expand(-1, 1, 4))
        overlap = paired_iou(boxes_xyxy, top)
        votes = scores.square() * (overlap > VOTE_IOU)
        voted = (boxes_xyxy * votes[..., None]).sum(1) / votes.sum(1, keepdim=True).clamp(min=1e-12)
        kept_boxes.append(voted * (score > 0)[:, None])
        kept_scores.append(score)
        # a box's IoU with itself may differ from 1: by rounding, or because the box has no area
        gone = (overlap > nms_iou).scatter(1, best[:, None], True)
        left = left.masked_fill(gone, 0.0)
    return torch.stack(kept_boxes, dim=1), torch.stack(kept_scores, dim=1)
