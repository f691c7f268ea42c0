"""The default model: one box per image, chosen among the locations of a feature pyramid, and the image's class."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import box_convert, generalized_box_iou_loss

from rsna.core.config import setting
from rsna.models.protocol import BoxesOfImages, Outputs, Targets, mean_largest_box
from rsna.models.pyramid import ASSIGNMENT_SIGMA, PyramidModel
from rsna.models.registry import register


@dataclass(frozen=True)
class Settings:
    box_weight: float = setting(1.0, "weight of the box and location losses", limits=(1e-8, 1e4))
    dropout: float = setting(0.2, "dropout before the last layer of the classifier", limits=(0, 0.95))
    fpn_channels: int = setting(128, "channels of the feature pyramid", limits=(1, 4096))


@register("single_box", Settings)
class SingleBoxModel(PyramidModel):
    """Predicts the box of the location with the highest objectness.

    The objectness of all locations together also predicts whether there is any opacity, so images without one train it
    too. A single box regressed from the whole image drifts to the middle, between the lungs, when the network is
    unsure of the side; choosing a location avoids that.
    """

    def __init__(self, encoder: nn.Module, size: int, num_classes: int, settings: Settings) -> None:
        super().__init__(encoder, num_classes, settings.fpn_channels, settings.dropout)
        self.box_weight = settings.box_weight

    def init_priors(self, boxes_cxcywh: BoxesOfImages, class_rates: Tensor) -> None:
        """Start with the mean box size and the class rates, which would otherwise take the first epochs to learn."""
        self.set_priors(class_rates[-1:], mean_largest_box(boxes_cxcywh)[2:].log(), class_rates)

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Scalars: loss = class + image + box_weight * (box + location / 2); all but loss are detached.

        class: cross-entropy of the image class; image: binary cross-entropy of pooled_image_logit. The other two are
        means over the images with a box. Their assignment weights are a Gaussian around the true centre, with sum 1.
        box: GIoU loss (Rezatofighi et al. 2019) + 4 * L1, weighted by the assignment; location: cross-entropy between
        the assignment and the softmax of the objectness over the locations.
        """
        target_box, has_box = targets["boxes"][:, 0], targets["mask"][:, 0]  # the largest
        class_loss = cross_entropy(outputs["logits"], targets["label"])
        image_loss = binary_cross_entropy_with_logits(pooled_image_logit(outputs["objectness"]), has_box.float())
        # images without a box get weight 0 instead of being filtered out, which would make the CPU wait for the GPU
        weight = has_box / has_box.sum().clamp(min=1)
        target_boxes = torch.where(has_box[:, None], target_box, 0.5)[:, None]
        distance = (outputs["centres"] - target_boxes[..., :2]) / target_boxes[..., 2:]
        assignment = (distance.square().sum(2) / (-2 * ASSIGNMENT_SIGMA**2)).softmax(dim=1)
        location = -(assignment * outputs["objectness"].log_softmax(1)).sum(1)
        boxes, target_boxes = outputs["boxes"], target_boxes.expand_as(outputs["boxes"])
        giou = generalized_box_iou_loss(*(box_convert(side, "cxcywh", "xyxy") for side in (boxes, target_boxes)))
        box = ((giou + 4 * (boxes - target_boxes).abs().mean(2)) * assignment).sum(1)
        return {
            "loss": class_loss + image_loss + self.box_weight * (weight * (box + location / 2)).sum(),
            "class": class_loss.detach(),
            "image": image_loss.detach(),
            "box": (weight * box.detach()).sum(),
            "location": (weight * location.detach()).sum(),
        }

    def decode(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, 1, 4) xyxy in [0, 1], scores (B, 1), class probabilities (B, classes)."""
        best = outputs["objectness"].argmax(1)
        boxes = outputs["boxes"][torch.arange(len(best), device=best.device), best]
        classes = outputs["logits"].softmax(dim=1)
        # geometric mean of two estimates of the probability of opacity: the class logits' and the objectness's
        score = (classes[:, -1:] * pooled_image_logit(outputs["objectness"])[:, None].sigmoid()).sqrt()
        return box_convert(boxes, "cxcywh", "xyxy")[:, None], score, classes


def pooled_image_logit(objectness: Tensor) -> Tensor:
    """Objectness logits (B, L) -> logit (B,) that there is an opacity anywhere: the log of their mean exponential."""
    return objectness.logsumexp(dim=1) - math.log(objectness.shape[1])
