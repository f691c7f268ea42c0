"""Several boxes per image: an objectness and a box at each location of the levels P3 to P6 of a feature pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss

from rsna.core.config import setting
from rsna.models.backbone import location_centres, normalise, top_down
from rsna.models.protocol import BoxesOfImages, DetectionModel, Outputs, Targets
from rsna.models.registry import register

PRIOR = 0.01  # objectness of an untrained network, as in RetinaNet (Lin et al. 2017)
CONVS = 3  # convolutions before each output
ANCHOR = 4  # side of the square anchor of a location, in strides; it serves the assignment only
NEAREST = 9  # candidates of a true box in each level
BINS = 8  # a side of a box is 0 to 7 strides away from its location
GIOU_WEIGHT, DISTRIBUTION_WEIGHT = 2.0, 0.25  # as in Li et al. 2020
VOTE_IOU = 0.4  # boxes that overlap a kept one by more have a say in where it is
CANDIDATES, MAX_BOXES = 64, 6  # locations that are looked at, and boxes that are kept of them at most


@dataclass(frozen=True)
class Settings:
    """The settings of model=detector alone."""

    box_weight: float = setting(1.0, "weight of the box losses", limits=(1e-8, 1e4))
    dropout: float = setting(0.2, "dropout before the last layer of the classifier", limits=(0, 0.95))
    fpn_channels: int = setting(128, "channels of the feature pyramid, a multiple of 16", limits=(16, 4096))
    nms_iou: float = setting(
        0.1, "boxes of a view that overlap a more confident one by more are dropped", limits=(0, 1)
    )


@register("detector", Settings)
class DetectorModel(DetectionModel):
    """Encoder, feature pyramid, two heads that all levels share, and an image-level classifier beside them.

    Locations are assigned to true boxes by ATSS (Zhang et al. 2020, arXiv:1912.02424). The target of the objectness is
    the IoU of the predicted box, and each side of a box is a distribution over distances (generalised focal loss, Li
    et al. 2020, arXiv:2006.04388).
    """

    bins: Tensor

    def __init__(self, encoder: nn.Module, size: int, num_classes: int, settings: Settings) -> None:
        """size: side of the input, pixels; not needed, as the maps follow from the image."""
        super().__init__()
        self.encoder, self.settings = encoder, settings
        channels, width = cast(Sequence[int], self.encoder.out_channels), settings.fpn_channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[-3:])
        self.smooth = nn.ModuleList(conv_norm(width) for _ in range(3))
        self.coarsest = conv_norm(width, stride=2)
        self.objectness_tower, self.box_tower = tower(width), tower(width)
        self.objectness, self.sides = nn.Conv2d(width, 1, 3, padding=1), nn.Conv2d(width, 4 * BINS, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(4))  # of the sides in each level
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Linear(channels[-1] + width, num_classes)
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32), persistent=False)

    def init_priors(self, boxes_cxcywh: BoxesOfImages, class_rates: Tensor) -> None:
        """Start with hardly any boxes, as most locations have none, and with the class rates."""
        assert self.objectness.bias is not None
        with torch.no_grad():
            for conv in (self.objectness, self.sides):
                nn.init.normal_(conv.weight, std=0.01)
            self.objectness.bias.fill_(torch.tensor(PRIOR).logit())
            self.classifier.weight.mul_(0.1)
            self.classifier.bias.copy_(class_rates.clamp(min=1e-3).log())

    def forward(self, images: Tensor) -> Outputs:
        """images (B, 1, S, S) uint8 -> logits (B, classes); of L locations objectness (B, L), sides (B, L, 4, BINS)
        logits, boxes (B, L, 4) xyxy in [0, 1] but for what leaves the image, centres (L, 2), strides (L,) in [0, 1]."""
        features = self.encoder(normalise(images))[-3:]
        levels = [smooth(level) for smooth, level in zip(self.smooth, top_down(self.lateral, features), strict=True)]
        levels.append(self.coarsest(levels[-1].relu()))
        outputs = [self.head(level.relu(), scale) for level, scale in zip(levels, self.scales, strict=True)]
        found = {key: torch.cat([level[key] for level in outputs], dim=-1) for key in ("objectness", "strides")}
        found |= {key: torch.cat([level[key] for level in outputs], dim=-2) for key in ("boxes", "centres")}
        attention = outputs[0]["objectness"].softmax(1)[:, None]
        attended = (levels[0].flatten(2) * attention).sum(2)
        pooled = torch.cat([features[-1].mean((2, 3)), attended], dim=1)
        logits = self.classifier(self.dropout(pooled)).float()
        return {**found, "sides": torch.cat([level["sides"] for level in outputs], dim=1), "logits": logits}

    def head(self, level: Tensor, scale: Tensor) -> Outputs:
        """What forward returns of the locations of one level (B, C, rows, cols)."""
        rows, cols = level.shape[-2:]
        objectness = self.objectness(self.objectness_tower(level)).flatten(1).float()
        sides = self.sides(self.box_tower(level)).flatten(2).transpose(1, 2).float() * scale
        sides = sides.unflatten(2, (4, BINS))
        centres = location_centres(rows, cols, level.device).reshape(-1, 2)
        strides = torch.full((rows * cols,), 1 / cols, device=level.device)
        distances = (sides.softmax(-1) * self.bins).sum(-1) * strides[:, None]
        boxes = torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)
        return {"objectness": objectness, "sides": sides, "boxes": boxes, "centres": centres, "strides": strides}

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Scalars: loss = class + objectness + box_weight * (2 * giou + distribution / 4); all but loss are detached.

        class: cross-entropy of the image; objectness: quality focal loss over all locations, per assigned one; the
        others are means over the assigned locations, weighted by their objectness. giou: GIoU loss; distribution:
        cross-entropy of the two distances on both sides of the true one.
        """
        true = box_convert(targets["boxes"], "cxcywh", "xyxy")
        assigned = assign(true, targets["mask"], outputs["centres"], outputs["strides"])
        positive = assigned >= 0
        own = true.gather(1, assigned.clamp(min=0)[..., None].expand(-1, -1, 4))
        own = torch.where(positive[..., None], own, own.new_tensor([0.4, 0.4, 0.6, 0.6]))  # any box, its weight is 0
        quality = paired_iou(outputs["boxes"].detach(), own) * positive
        confidence = outputs["objectness"].sigmoid()
        focal = binary_cross_entropy_with_logits(outputs["objectness"], quality, reduction="none")
        objectness = ((quality - confidence).square() * focal).sum() / positive.sum().clamp(min=1)
        weight = confidence.detach().clamp(min=0.05) * positive
        weight = weight / weight.sum().clamp(min=1e-6)
        giou = (weight * generalized_box_iou_loss(outputs["boxes"], own)).sum()
        distances = torch.cat([outputs["centres"] - own[..., :2], own[..., 2:] - outputs["centres"]], dim=-1)
        distribution = (weight * distribution_loss(outputs["sides"], distances / outputs["strides"][:, None])).sum()
        entropy = cross_entropy(outputs["logits"], targets["label"])
        box = GIOU_WEIGHT * giou + DISTRIBUTION_WEIGHT * distribution
        parts = {"class": entropy, "objectness": objectness, "giou": giou, "distribution": distribution}
        loss = entropy + objectness + self.settings.box_weight * box
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    def decode(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, 6, 4) xyxy in [0, 1], empty where there are fewer; objectness (B, 6); class probabilities."""
        boxes, scores = outputs["boxes"].clamp(0, 1), outputs["objectness"].sigmoid()
        return *select_boxes(boxes, scores, self.settings.nms_iou), outputs["logits"].softmax(dim=1)


def conv_norm(width: int, stride: int = 1) -> nn.Sequential:
    """A convolution and a normalisation that does not depend on the batch, which is small."""
    return nn.Sequential(nn.Conv2d(width, width, 3, stride, padding=1, bias=False), nn.GroupNorm(16, width))


def tower(width: int) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(CONVS) for layer in (*conv_norm(width), nn.ReLU())))


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU (...) of boxes (..., 4) xyxy, pair by pair."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (first, second)]
    return overlap / (areas[0] + areas[1] - overlap).clamp(min=1e-9)


@torch.no_grad()
def assign(boxes_xyxy: Tensor, mask: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """ATSS: true boxes (B, N, 4), which of them count (B, N) -> (B, L) the box of each location, -1 for none.

    Candidates of a box are the locations of each level that are nearest to its centre. Of these it gets those inside
    it whose anchor overlaps it by at least the mean plus the standard deviation over its candidates; if there are
    none, the location of the highest overlap. A location that several boxes want goes to the highest overlap.
    """
    anchors = torch.cat([centres - ANCHOR * strides[:, None] / 2, centres + ANCHOR * strides[:, None] / 2], dim=1)
    iou = box_iou(boxes_xyxy.flatten(0, 1), anchors).unflatten(0, mask.shape)
    middle = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2
    distance = (middle[:, :, None] - centres).square().sum(-1)
    candidate = torch.zeros_like(iou)
    for stride in strides.unique_consecutive():
        apart = distance.masked_fill(strides != stride, torch.inf)
        count = min(NEAREST, round(1 / float(stride)) ** 2)
        candidate.scatter_(2, apart.topk(count, largest=False).indices, 1.0)
    mean = (iou * candidate).sum(2, keepdim=True) / candidate.sum(2, keepdim=True)
    spread = (((iou - mean).square() * candidate).sum(2, keepdim=True) / (candidate.sum(2, keepdim=True) - 1)).sqrt()
    sides = torch.cat([centres - boxes_xyxy[:, :, None, :2], boxes_xyxy[:, :, None, 2:] - centres], dim=-1)
    chosen = (candidate > 0) & (iou >= mean + spread) & (sides.amin(-1) > 0)
    chosen |= ~chosen.any(2, keepdim=True) & (iou == iou.amax(2, keepdim=True))
    best, box = torch.where(chosen & mask[..., None], iou, -1.0).max(dim=1)
    return torch.where(best >= 0, box, -1)


def distribution_loss(sides: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (B, L), mean over sides: logits (B, L, 4, BINS), true distances (B, L, 4) in strides."""
    distances = distances.clamp(0, BINS - 1.01)
    left = distances.long()
    log_p = sides.log_softmax(-1)
    near, far = (log_p.gather(-1, (left + k)[..., None])[..., 0] for k in (0, 1))
    return -(near * (1 - distances + left) + far * (distances - left)).mean(-1)


def select_boxes(boxes_xyxy: Tensor, scores: Tensor, nms_iou: float) -> tuple[Tensor, Tensor]:
    """Boxes (B, L, 4) and scores (B, L) -> those that NMS keeps, (B, MAX_BOXES, 4) and (B, MAX_BOXES), else zeros.

    A kept box is where those that overlap it by more than VOTE_IOU are on average, weighted by their squared scores
    (box voting, Gidaris and Komodakis 2015).
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
        # an overlap of a box with itself is 1, but for rounding or a box without area
        gone = (overlap > nms_iou).scatter(1, best[:, None], True)
        left = left.masked_fill(gone, 0.0)
    return torch.stack(kept_boxes, dim=1), torch.stack(kept_scores, dim=1)
