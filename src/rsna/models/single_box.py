"""The network: one box and a class per image. Offers forward, loss and decode, which is all the engine knows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate
from torchvision.ops import box_convert, generalized_box_iou_loss

from rsna.core.config import setting
from rsna.models.backbone import normalise
from rsna.models.registry import register

REACH = 0.15  # how far from its cell a box's centre may lie, share of the image
SPREAD = 0.15  # places this near the true centre, in units of the box, count as right too


@dataclass(frozen=True)
class Settings:
    """The settings of model=single_box alone."""

    box_weight: float = setting(1.0, "weight of the box and location losses beside the cross-entropies")
    dropout: float = setting(0.2, "dropout before the last layer of the classifier")
    fpn_channels: int = setting(128, "channels of the feature pyramid")


@register("single_box", Settings)
class SingleBoxModel(nn.Module):
    """Encoder, a feature pyramid down to stride 8, and at each of its places: 4 box numbers and "is it here?".

    The image's box is that of the most likely place; all places together also say whether there is an opacity at all,
    so that images without one teach them too. A box regressed from the whole image at once drifts to the
    middle between the lungs where the image leaves open which side is meant; a choice between places cannot.
    The size of the map follows from the encoder and the input.
    """

    def __init__(self, encoder: nn.Module, size: int, num_classes: int, settings: Settings) -> None:
        """size: side of the input, pixels; not needed, as the map follows from the image."""
        super().__init__()
        self.encoder = encoder
        self.box_weight = settings.box_weight
        width = settings.fpn_channels
        channels = cast(Sequence[int], self.encoder.out_channels)
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[-3:])
        self.mix = nn.Sequential(
            nn.Conv2d(width + 2, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.place = nn.Conv2d(width, 1, 1)
        self.box = nn.Conv2d(width, 4, 1)
        self.classes = nn.Linear(channels[-1] + width, num_classes)
        self.dropout = nn.Dropout(settings.dropout)

    def start_at(self, mean_box_cxcywh: Tensor, class_rates: Tensor) -> None:
        """Begin with the size of the mean box (4,) in [0, 1] and the class rates as the answer to every image.

        Otherwise the first epochs go into moving the outputs there.
        """
        assert self.box.bias is not None
        assert self.place.bias is not None
        with torch.no_grad():
            self.place.bias.copy_(class_rates[-1:].clamp(0.01, 0.99).logit())
            self.box.weight.mul_(0.1)
            self.box.bias.copy_(torch.cat([torch.zeros(2), mean_box_cxcywh[2:].log()]))
            self.classes.weight.mul_(0.1)
            self.classes.bias.copy_(class_rates.clamp(min=1e-3).log())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, 1, S, S) uint8 -> logits (B, classes), place (B, P) logits of the places, boxes (B, P, 4)
        cxcywh in [0, 1] at each place, centres (P, 2) of the places in [0, 1]."""
        features = self.encoder(normalise(images))[-3:]
        pyramid = self.lateral[2](features[2])
        for level in (1, 0):
            below = self.lateral[level](features[level])
            pyramid = interpolate(pyramid, size=below.shape[-2:], mode="nearest") + below
        grid = place_centres(pyramid.shape[-2], pyramid.shape[-1], pyramid.device)
        # lungs stand where they stand: the convolutions may know where they look
        position = (2 * grid - 1).permute(2, 0, 1).to(pyramid.dtype).expand(len(pyramid), -1, -1, -1)
        pyramid = self.mix(torch.cat([pyramid, position], dim=1))
        place = self.place(pyramid).flatten(1).float()
        centres = grid.reshape(-1, 2)
        box = self.box(pyramid).flatten(2).transpose(1, 2).float()
        boxes = torch.cat([centres + REACH * box[..., :2].tanh(), box[..., 2:].exp().clamp(max=1.0)], dim=2)
        looked_at = (pyramid.flatten(2) * place.softmax(1)[:, None]).sum(2)
        pooled = torch.cat([features[2].mean((2, 3)), looked_at], dim=1)
        logits = self.classes(self.dropout(pooled)).float()
        return {"logits": logits, "place": place, "boxes": boxes, "centres": centres}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of class and of presence + box_weight * (box loss + half the cross-entropy of the place).

        A scalar. targets: box (B, 4) cxcywh in [0, 1], has_box (B,) bool, label (B,) int. Box and place count on
        images with a box only. Box loss: GIoU (Rezatofighi et al. 2019) + 4 * L1, at the places near the true centre.
        """
        has_box = targets["has_box"]
        loss = cross_entropy(outputs["logits"], targets["label"])
        loss = loss + binary_cross_entropy_with_logits(presence(outputs["place"]), has_box.float())
        # images without a box take part with weight 0: to pick out the others would make a GPU wait
        weight = has_box / has_box.sum().clamp(min=1)
        wanted = torch.where(has_box[:, None], targets["box"], 0.5)[:, None]
        nearness = (outputs["centres"] - wanted[..., :2]) / wanted[..., 2:]
        share = (nearness.square().sum(2) / (-2 * SPREAD**2)).softmax(dim=1)
        place = -(share * outputs["place"].log_softmax(1)).sum(1)
        boxes = outputs["boxes"]
        wanted = wanted.expand_as(boxes)
        overlap = generalized_box_iou_loss(to_xyxy(boxes), to_xyxy(wanted))
        distance = (boxes - wanted).abs().mean(2)
        box = ((overlap + 4 * distance) * share).sum(1)
        return loss + self.box_weight * (weight * (box + place / 2)).sum()

    def decode(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, n, 4) xyxy in [0, 1] and confidences (B, n), most confident first; here n = 1.

        The confidence is the geometric mean of what the class and what the places say.
        """
        best = outputs["place"].argmax(1)
        boxes = outputs["boxes"][torch.arange(len(best), device=best.device), best]
        classes = outputs["logits"].softmax(dim=1)
        scores = (classes[:, -1:] * presence(outputs["place"])[:, None].sigmoid()).sqrt()
        return to_xyxy(boxes)[:, None], scores, classes


def presence(place: Tensor) -> Tensor:
    """Logits (B, P) of the places -> (B,) logit of "somewhere": their log of the mean of exponentials."""
    return place.logsumexp(dim=1) - math.log(place.shape[1])


def place_centres(rows: int, cols: int, device: torch.device) -> Tensor:
    """(rows, cols, 2) float32, whatever precision the network has: x, y in [0, 1] of the centre of each cell."""
    y = (torch.arange(rows, dtype=torch.float32, device=device) + 0.5) / rows
    x = (torch.arange(cols, dtype=torch.float32, device=device) + 0.5) / cols
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)


def to_xyxy(box_cxcywh: Tensor) -> Tensor:
    return box_convert(box_cxcywh, "cxcywh", "xyxy")
