"""An image-level classifier: class probabilities, no boxes. Its probabilities can gate the boxes of other runs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rsna.core.config import setting
from rsna.models.backbone import normalise
from rsna.models.protocol import BoxesOfImages, DetectionModel, Outputs, Targets, set_prior
from rsna.models.registry import register


@dataclass(frozen=True)
class Settings:
    dropout: float = setting(0.2, "dropout before the last layer", limits=(0, 0.95))


@register("classifier", Settings)
class ClassifierModel(DetectionModel):
    """Encoder, global average and global max pooling of its last feature map, and a linear layer."""

    predicts_boxes = False

    def __init__(self, encoder: nn.Module, size: int, num_classes: int, settings: Settings) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Linear(2 * self.encoder.out_channels[-1], num_classes)

    def init_priors(self, boxes_cxcywh: BoxesOfImages, class_rates: Tensor) -> None:
        """Set the initial class probabilities to the class rates."""
        set_prior(self.classifier, class_rates.clamp(min=1e-3).log())

    def forward(self, images: Tensor) -> Outputs:
        """images (B, 1, S, S) uint8 -> logits (B, classes)."""
        features = self.encoder(normalise(images))[-1]
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return {"logits": self.classifier(self.dropout(pooled)).float()}

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Scalars: loss, the cross-entropy; and class, its only part: the same value, detached."""
        loss = cross_entropy(outputs["logits"], targets["label"])
        return {"loss": loss, "class": loss.detach()}

    def decode(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Empty boxes (B, 0, 4), empty scores (B, 0), class probabilities (B, classes)."""
        classes = outputs["logits"].softmax(dim=1)
        return classes.new_zeros(len(classes), 0, 4), classes.new_zeros(len(classes), 0), classes
