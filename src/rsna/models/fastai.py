"""The network of the fast.ai post: one box and a class from the flattened map. Offers forward, loss and decode."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss
from torchvision.ops import box_convert

from rsna.core.config import setting
from rsna.models.backbone import normalise
from rsna.models.registry import register

MEASURED = 200  # training batches over which the weight of the cross-entropy is measured
HIDDEN = 256


@dataclass(frozen=True)
class Settings:
    """The settings of model=fastai alone."""

    dropout: float = setting(0.5, "dropout before both layers of the head")
    full_image_negatives: bool = setting(False, "regress images without a box to the whole image, as the post does")


@register("fastai", Settings)
class FlatModel(nn.Module):
    """Encoder and a head on its flattened last map: ReLU, dropout, 256 hidden units, 4 corners and the classes.

    The loss is L1 in pixels + scale * cross-entropy, where the scale is the ratio of the two over the first 200
    training batches (the post's author found 316), so that both weigh the same.
    """

    scale: Tensor
    sums: Tensor

    def __init__(self, encoder: nn.Module, size: int, num_classes: int, settings: Settings) -> None:
        """size: side of the input, pixels."""
        super().__init__()
        self.encoder = encoder
        self.size, self.full_image_negatives = size, settings.full_image_negatives
        dropout = settings.dropout
        channels: int = self.encoder.out_channels[-1]  # type: ignore[index, assignment]
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels * (size // 32) ** 2, HIDDEN),
            nn.ReLU(),
            nn.BatchNorm1d(HIDDEN),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, 4 + num_classes),
        )
        # sums over the first training batches: L1, cross-entropy, batches with boxes, batches
        self.register_buffer("sums", torch.zeros(4))
        self.register_buffer("scale", torch.ones(()))

    def start_at(self, mean_box_cxcywh: Tensor, class_rates: Tensor) -> None:
        """Begin with the mean box (4,) in [0, 1] and the class rates as the answer to every image.

        The last layer follows a normalisation: only its bias, by about the learning rate per step, moves the mean box.
        """
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        corners = box_convert(mean_box_cxcywh, "cxcywh", "xyxy").clamp(0.01, 0.99)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.copy_(torch.cat([corners.logit(), class_rates.clamp(min=1e-3).log()]))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, 1, S, S) uint8 -> boxes (B, 4) corners xyxy in pixels of the input, logits (B, classes)."""
        numbers = self.head(self.encoder(normalise(images))[-1]).float()
        return {"boxes": numbers[:, :4].sigmoid() * self.size, "logits": numbers[:, 4:]}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """L1 of the corners in pixels + scale * cross-entropy; a scalar.

        targets: box (B, 4) cxcywh in [0, 1], has_box (B,) bool, label (B,) int. Without full_image_negatives the L1
        counts on images with a box only.
        """
        entropy = cross_entropy(outputs["logits"], targets["label"])
        corners = box_convert(targets["box"], "cxcywh", "xyxy")
        counts = targets["has_box"]
        if self.full_image_negatives:
            corners = torch.where(counts[:, None], corners, corners.new_tensor([0.0, 0.0, 1.0, 1.0]))
            counts = torch.ones_like(counts)
        distance = l1_loss(outputs["boxes"][counts], corners[counts] * self.size) if counts.any() else None
        if self.training and self.sums[3] < MEASURED:
            self.measure_scale(distance, entropy)
        return self.scale * entropy + (0 if distance is None else distance)

    @torch.no_grad()
    def measure_scale(self, distance: Tensor | None, entropy: Tensor) -> None:
        """Take a batch into the running ratio of the two losses."""
        ones = torch.ones_like(entropy)
        found = [torch.zeros_like(entropy)] * 2 if distance is None else [distance, ones]
        self.sums += torch.stack([found[0], entropy, found[1], ones])
        if self.sums[2] > 0:
            self.scale.copy_(self.sums[0] / self.sums[2] / (self.sums[1] / self.sums[3]))

    def hold_scale(self) -> None:
        """Measure no more, and keep the scale of the losses as it is."""
        self.sums[3] = max(MEASURED, float(self.sums[3]))

    def decode(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, 1, 4) xyxy in [0, 1], corners in order, and confidences (B, 1): the opacity's probability."""
        first, second = outputs["boxes"][:, :2], outputs["boxes"][:, 2:]
        boxes = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1) / self.size
        classes = outputs["logits"].softmax(dim=1)
        return boxes[:, None], classes[:, -1:], classes
