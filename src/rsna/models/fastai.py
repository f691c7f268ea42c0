"""The model of the fast.ai post: one box and the class logits, predicted from the flattened feature map."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss
from torchvision.ops import box_convert

from rsna.core.config import setting
from rsna.models.backbone import normalise
from rsna.models.protocol import BoxesOfImages, DetectionModel, Outputs, Targets, mean_largest_box, set_prior
from rsna.models.registry import register

MEASURED = 200  # training batches over which the weight of the cross-entropy is measured
HIDDEN = 256


@dataclass(frozen=True)
class Settings:
    dropout: float = setting(0.5, "dropout before both layers of the head", limits=(0, 0.95))
    full_image_negatives: bool = setting(False, "regress images without a box to the whole image, as the post does")


@register("fastai", Settings)
class FastaiModel(DetectionModel):
    """Encoder, and a head on its flattened last feature map with 256 hidden units; outputs a box and class logits.

    The loss is L1 in pixels + scale * cross-entropy. The scale is the ratio of the two losses over the first 200
    training batches (316 in the post), so that both have the same weight.
    """

    measures_loss_weights = True
    scale: Tensor
    sums: Tensor

    def __init__(self, encoder: nn.Module, size: int, num_classes: int, settings: Settings) -> None:
        super().__init__()
        self.encoder = encoder
        self.size, self.full_image_negatives = size, settings.full_image_negatives
        n_features = self.encoder.out_channels[-1] * (size // 32) ** 2
        self.head = nn.Sequential(
            *(nn.Flatten(), nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(n_features, HIDDEN)),
            *(nn.ReLU(), nn.BatchNorm1d(HIDDEN), nn.Dropout(settings.dropout), nn.Linear(HIDDEN, 4 + num_classes)),
        )
        # sums over the first training batches: L1, cross-entropy, batches with boxes, batches
        self.register_buffer("sums", torch.zeros(4))
        self.register_buffer("scale", torch.ones(()))

    def init_priors(self, boxes_cxcywh: BoxesOfImages, class_rates: Tensor) -> None:
        """Start with the mean largest box and the class rates."""
        # the last layer's inputs are normalised: only its bias can shift the mean box, by about lr in each step
        corners = box_convert(mean_largest_box(boxes_cxcywh), "cxcywh", "xyxy").clamp(0.01, 0.99)
        set_prior(self.head[-1], torch.cat([corners.logit(), class_rates.clamp(min=1e-3).log()]))

    def forward(self, images: Tensor) -> Outputs:
        """images (B, 1, S, S) uint8 -> boxes (B, 4) xyxy in pixels of the model's input, logits (B, classes)."""
        numbers = self.head(self.encoder(normalise(images))[-1]).float()
        return {"boxes": numbers[:, :4].sigmoid() * self.size, "logits": numbers[:, 4:]}

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Scalars: loss = box + scale * class; box: L1 of the corners, pixels; class: cross-entropy; both detached.

        The L1 is averaged over the images with a box, or over all images with full_image_negatives.
        """
        entropy = cross_entropy(outputs["logits"], targets["label"])
        target_box, counts = targets["boxes"][:, 0], targets["mask"][:, 0]  # the largest; whether it counts
        corners = box_convert(target_box, "cxcywh", "xyxy")
        if self.full_image_negatives:
            corners = torch.where(counts[:, None], corners, corners.new_tensor([0.0, 0.0, 1.0, 1.0]))
            counts = torch.ones_like(counts)
        with_box = counts.any()
        box = l1_loss(outputs["boxes"][counts], corners[counts] * self.size) if with_box else torch.zeros_like(entropy)
        if self.training and self.sums[3] < MEASURED:
            self.sums += torch.stack([box, entropy, with_box.to(box.dtype), torch.ones_like(box)]).detach()
            if self.sums[2] > 0:
                self.scale.copy_(self.sums[0] / self.sums[2] / (self.sums[1] / self.sums[3]))
        return {"loss": self.scale * entropy + box, "class": entropy.detach(), "box": box.detach()}

    def hold_loss_weights(self) -> None:
        """Stop measuring the scale and keep its value."""
        self.sums[3] = max(MEASURED, float(self.sums[3]))

    def decode(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, 1, 4) xyxy in [0, 1], scores (B, 1): the probability of opacity, class probabilities (B, classes).

        Corners that the network predicts in the wrong order are swapped.
        """
        first, second = outputs["boxes"][:, :2], outputs["boxes"][:, 2:]
        boxes = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1) / self.size
        classes = outputs["logits"].softmax(dim=1)
        return boxes[:, None], classes[:, -1:], classes
