"""Several boxes per image: an objectness and a box at each location of a feature map of stride 8, then NMS."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import box_convert, generalized_box_iou_loss, nms, box_iou

from rsna.core.config import setting
from rsna.models.backbone import location_centres, normalise, top_down
from rsna.models.protocol import BoxesOfImages, DetectionModel, Outputs, Targets
from rsna.models.registry import register

MAX_CENTER_OFFSET = 0.15  # of a box's centre from its location, fraction of the image
ASSIGNMENT_SIGMA = 0.15  # of the Gaussian around the centre of a true box, in units of the box
PRIOR = 0.01  # objectness of an untrained network, as in RetinaNet
CANDIDATES, KEPT = 64, 6  # locations that go into NMS, and boxes that come out of it at most


@dataclass(frozen=True)
class Settings:
    """The settings of model=detector alone."""

    box_weight: float = setting(1.0, "weight of the box loss", limits=(1e-8, 1e4))
    dropout: float = setting(0.2, "dropout before the last layer of the classifier", limits=(0, 0.95))
    fpn_channels: int = setting(128, "channels of the feature pyramid", limits=(32, 4096))
    nms_iou: float = setting(
        0.2, "boxes of a view that overlap a more confident one by more are dropped", limits=(0, 1)
    )
    # experiment toggles
    quality: str = setting("heat", "")
    tower: int = setting(0, "")
    empty_weight: float = setting(1.0, "")
    position: bool = setting(True, "")
    image_weight: float = setting(0.0, "")
    drop2d: float = setting(0.0, "")
    norm_heat: bool = setting(True, "")
    class_weight: float = setting(1.0, "")


@register("detector", Settings)
class DetectorModel(DetectionModel):
    """Encoder, a feature pyramid down to stride 8, and at each of its locations a box and an objectness logit.

    The target of the objectness is soft: a Gaussian around the centre of each true box (as in CenterNet, Zhou et al.
    2019), trained by the quality focal loss (Li et al. 2020). An image-level classifier stands beside it.
    """

    def __init__(self, encoder: nn.Module, size: int, num_classes: int, settings: Settings) -> None:
        """size: side of the input, pixels; not needed, as the map follows from the image."""
        super().__init__()
        self.encoder, self.settings = encoder, settings
        channels, width = cast(Sequence[int], self.encoder.out_channels), settings.fpn_channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[-3:])
        extra = 2 if settings.position else 0
        conv = nn.Conv2d(width + extra, width, 3, padding=1, bias=False)  # 2: the position
        self.fpn_conv = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
        tower = []
        for _ in range(settings.tower):
            tower += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(16, width), nn.ReLU()]
        self.tower = nn.Sequential(*tower)
        self.drop2d = nn.Dropout2d(settings.drop2d)
        self.objectness = nn.Conv2d(width, 1, 1)
        self.box_head = nn.Conv2d(width, 4, 1)
        self.classifier = nn.Linear(channels[-1] + width, num_classes)
        self.dropout = nn.Dropout(settings.dropout)

    def init_priors(self, boxes_cxcywh: BoxesOfImages, class_rates: Tensor) -> None:
        assert self.box_head.bias is not None
        assert self.objectness.bias is not None
        mean = torch.from_numpy(np.log(np.concatenate(boxes_cxcywh)[:, 2:]).mean(axis=0)).float()
        with torch.no_grad():
            self.objectness.bias.fill_(torch.tensor(PRIOR).logit())
            self.box_head.weight.mul_(0.1)
            self.box_head.bias.copy_(torch.cat([torch.zeros(2), mean]))
            self.classifier.weight.mul_(0.1)
            self.classifier.bias.copy_(class_rates.clamp(min=1e-3).log())

    def forward(self, images: Tensor) -> Outputs:
        features = self.encoder(normalise(images))[-3:]
        pyramid = top_down(self.lateral, features)[0]
        grid = location_centres(pyramid.shape[-2], pyramid.shape[-1], pyramid.device)
        if self.settings.position:
            position = (2 * grid - 1).permute(2, 0, 1).to(pyramid.dtype).expand(len(pyramid), -1, -1, -1)
            pyramid = torch.cat([pyramid, position], dim=1)
        pyramid = self.fpn_conv(pyramid)
        head = self.tower(self.drop2d(pyramid))
        objectness = self.objectness(head).flatten(1).float()
        centres = grid.reshape(-1, 2)
        box = self.box_head(head).flatten(2).transpose(1, 2).float()
        boxes = torch.cat([centres + MAX_CENTER_OFFSET * box[..., :2].tanh(), box[..., 2:].exp().clamp(max=1.0)], dim=2)
        attended = (pyramid.flatten(2) * objectness.softmax(1)[:, None]).sum(2)  # attention pooling
        pooled = torch.cat([features[2].mean((2, 3)), attended], dim=1)
        logits = self.classifier(self.dropout(pooled)).float()
        return {"logits": logits, "objectness": objectness, "boxes": boxes, "centres": centres}

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        s = self.settings
        boxes, mask = targets["boxes"], targets["mask"]
        true = torch.where(mask[..., None], boxes, 0.5)
        distance = ((outputs["centres"] - true[:, :, None, :2]) / true[:, :, None, 2:]).square().sum(3)  # (B, N, L)
        heat = (distance / (-2 * ASSIGNMENT_SIGMA**2)).exp()
        if s.norm_heat:
            heat = heat / heat.amax(dim=2, keepdim=True)
        heat = heat * mask[..., None]
        hottest, nearest = heat.max(dim=1)  # (B, L)
        own = true.gather(1, nearest[..., None].expand(-1, -1, 4))
        predicted = outputs["boxes"]
        giou = generalized_box_iou_loss(*(box_convert(side, "cxcywh", "xyxy") for side in (predicted, own)))
        weight = hottest * (hottest > 0.1)
        weight = weight / weight.sum().clamp(min=1)
        box = (weight * (giou + 4 * (predicted - own).abs().mean(2))).sum()
        wanted = hottest
        if s.quality == "iou":
            with torch.no_grad():
                a, b = (box_convert(side, "cxcywh", "xyxy") for side in (predicted, own))
                lt, rb = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
                inter = (rb - lt).clamp(min=0).prod(-1)
                iou = inter / (predicted[..., 2:].prod(-1) + own[..., 2:].prod(-1) - inter).clamp(min=1e-9)
            wanted = hottest * iou
        logit = outputs["objectness"]
        focal = (wanted - logit.sigmoid()).square() * binary_cross_entropy_with_logits(logit, wanted, reduction="none")
        focal = focal.sum(1) * torch.where(mask.any(1), 1.0, s.empty_weight)
        objectness = focal.sum() / mask.sum().clamp(min=1)
        class_loss = cross_entropy(outputs["logits"], targets["label"])
        return {
            "loss": s.class_weight * class_loss + objectness + s.box_weight * box,
            "class": class_loss.detach(),
            "objectness": objectness.detach(),
            "box": box.detach(),
        }

    def decode(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        classes = outputs["logits"].softmax(dim=1)
        scores = (classes[:, -1:] * outputs["objectness"].sigmoid()).sqrt()
        boxes_xyxy = box_convert(outputs["boxes"], "cxcywh", "xyxy")
        return *keep_best(boxes_xyxy, scores, self.settings.nms_iou), classes


def keep_best(boxes_xyxy: Tensor, scores: Tensor, iou: float) -> tuple[Tensor, Tensor]:
    """Boxes (B, L, 4), scores (B, L) -> (B, KEPT, 4), (B, KEPT) after NMS, padded with zeros."""
    scores, order = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
    boxes_xyxy = boxes_xyxy.gather(1, order[..., None].expand(-1, -1, 4))
    kept_boxes, kept_scores = boxes_xyxy.new_zeros(len(scores), KEPT, 4), scores.new_zeros(len(scores), KEPT)
    for k, (own, confidence) in enumerate(zip(boxes_xyxy, scores, strict=True)):
        kept = nms(own, confidence, iou)[:KEPT]
        kept_boxes[k, : len(kept)], kept_scores[k, : len(kept)] = own[kept], confidence[kept]
    return kept_boxes, kept_scores
