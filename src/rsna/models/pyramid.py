"""What single_box and detector share: a feature pyramid down to stride 8, and objectness and a box at each location."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from rsna.models.backbone import normalise
from rsna.models.protocol import DetectionModel, Outputs, set_prior

MAX_CENTER_OFFSET = 0.15  # largest offset of a box's centre from its location, as a fraction of the image
ASSIGNMENT_SIGMA = 0.15  # of the Gaussian around the centre of a true box, as a fraction of the box's sides


class PyramidModel(DetectionModel):
    """Encoder, feature pyramid, boxes, objectness logits and image class logits. Subclasses add loss and decode."""

    def __init__(self, encoder: nn.Module, num_classes: int, width: int, dropout: float, convs: int = 0) -> None:
        """width: channels of the pyramid; convs: convolutions between the pyramid and the output layers."""
        super().__init__()
        self.encoder = encoder
        channels = self.encoder.out_channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[-3:])
        conv = nn.Conv2d(width + 2, width, 3, padding=1, bias=False)  # 2: x and y of the location
        self.fpn_conv = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
        self.tower = nn.Sequential()
        for _ in range(convs):  # GroupNorm: unlike batch norm, it does not depend on the batch, which is small
            conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.tower.extend([conv, nn.GroupNorm(16, width), nn.ReLU()])
        self.objectness = nn.Conv2d(width, 1, 1)
        self.box_head = nn.Conv2d(width, 4, 1)
        self.classifier = nn.Linear(channels[-1] + width, num_classes)
        self.dropout = nn.Dropout(dropout)

    def set_priors(self, p_objectness: Tensor, log_size: Tensor, class_rates: Tensor) -> None:
        """Initialise the biases: objectness in [0, 1] (1,), log of a box's width and height (2,), class rates."""
        set_prior(self.objectness, p_objectness.clamp(0.01, 0.99).logit(), factor=1.0)
        set_prior(self.box_head, torch.cat([torch.zeros(2), log_size]))
        set_prior(self.classifier, class_rates.clamp(min=1e-3).log())

    def forward(self, images: Tensor) -> Outputs:
        """images (B, 1, S, S) uint8 -> logits (B, classes) of the image, and for L locations: objectness (B, L) logits,
        boxes (B, L, 4) cxcywh and centres (L, 2) xy, both as fractions of the image."""
        features = self.encoder(normalise(images))[-3:]
        pyramid = top_down(self.lateral, features)
        grid = location_centres(pyramid.shape[-2], pyramid.shape[-1], pyramid.device)
        # lungs are always in about the same place, so the convolutions get the position as input
        position = (2 * grid - 1).permute(2, 0, 1).to(pyramid.dtype).expand(len(pyramid), -1, -1, -1)
        pyramid = self.fpn_conv(torch.cat([pyramid, position], dim=1))
        head = self.tower(pyramid)
        objectness = self.objectness(head).flatten(1).float()
        centres = grid.reshape(-1, 2)
        box = self.box_head(head).flatten(2).transpose(1, 2).float()
        boxes = torch.cat([centres + MAX_CENTER_OFFSET * box[..., :2].tanh(), box[..., 2:].exp().clamp(max=1.0)], dim=2)
        attended = (pyramid.flatten(2) * objectness.softmax(1)[:, None]).sum(2)  # attention pooling
        pooled = torch.cat([features[-1].mean((2, 3)), attended], dim=1)
        logits = self.classifier(self.dropout(pooled)).float()
        return {"logits": logits, "objectness": objectness, "boxes": boxes, "centres": centres}


def top_down(lateral: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    """The finest map of a feature pyramid (Lin et al. 2017); lateral: one 1 x 1 convolution per feature map."""
    level = lateral[-1](features[-1])
    for conv, feature in zip(list(lateral)[-2::-1], features[-2::-1], strict=True):
        finer = conv(feature)
        level = interpolate(level, size=finer.shape[-2:], mode="nearest") + finer
    return level


def location_centres(rows: int, cols: int, device: torch.device) -> Tensor:
    """x, y in [0, 1] of the centre of each cell: (rows, cols, 2), float32 even under mixed precision."""
    y, x = ((torch.arange(n, dtype=torch.float32, device=device) + 0.5) / n for n in (rows, cols))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)
