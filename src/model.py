"""The network: one box and a class per image. Offers forward, loss and decode, which is all the engine knows."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss
from torchvision.ops import box_convert, generalized_box_iou_loss

from backbone import make_encoder
from config import Config

# grey level statistics of ImageNet, which pretrained encoders expect; near those of chest radiographs
MEAN, STD = 0.449, 0.226


class SingleBoxModel(nn.Module):
    """Encoder, then one linear layer on the flattened map: 4 box numbers and the classes, opacity last."""

    def __init__(
        self, encoder: str, weights: str, size: int, n_classes: int, dropout: float, box_weight: float, width: int = 64
    ) -> None:
        """size: side of the input in pixels; width: channels of the map that is flattened."""
        super().__init__()
        self.encoder = make_encoder(encoder, weights)
        self.box_weight = box_weight
        with torch.no_grad():
            channels, *grid = self.encoder.eval()(torch.zeros(1, 1, size, size))[-1].shape[1:]
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(width * grid[0] * grid[1], 4 + n_classes)
        )
        self.train()

    def start_at(self, mean_box_cxcywh: Tensor, class_rates: Tensor) -> None:
        """Begin with the mean box (4,) in [0, 1] and the class rates as the answer to every image.

        Otherwise the first epochs go into moving the output there, and the box stays in the picture's middle.
        """
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.copy_(torch.cat([torch.logit(mean_box_cxcywh, eps=1e-3), class_rates.clamp(min=1e-3).log()]))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, 1, S, S) uint8 -> box (B, 4) cxcywh in [0, 1], logits (B, classes)."""
        pixels = (images.float() / 255 - MEAN) / STD
        output = self.head(self.reduce(self.encoder(pixels)[-1])).float()
        return {"box": output[:, :4].sigmoid(), "logits": output[:, 4:]}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of all images + box_weight * (L1 + GIoU loss) of the images with a box; a scalar.

        targets: box (B, 4) cxcywh in [0, 1], has_box (B,) bool, label (B,) int. GIoU: Rezatofighi et al. 2019.
        """
        classes = cross_entropy(outputs["logits"], targets["label"])
        has_box = targets["has_box"]
        predicted, wanted = outputs["box"][has_box], targets["box"][has_box]
        if not len(predicted):
            return classes
        overlap = generalized_box_iou_loss(to_xyxy(predicted), to_xyxy(wanted), reduction="mean")
        return classes + self.box_weight * (4 * l1_loss(predicted, wanted) + overlap)

    def decode(self, outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (B, n, 4) xyxy in [0, 1] and confidences (B, n), most confident first; here n = 1."""
        confidence = outputs["logits"].softmax(dim=1)[:, -1:]
        return to_xyxy(outputs["box"])[:, None], confidence


def to_xyxy(box_cxcywh: Tensor) -> Tensor:
    return box_convert(box_cxcywh, "cxcywh", "xyxy")


def build_model(cfg: Config, weights: str | None = None) -> SingleBoxModel:
    """The network that the config asks for; `weights` overrides where the encoder starts."""
    return SingleBoxModel(cfg.encoder, weights or cfg.weights, cfg.size, cfg.classes, cfg.dropout, cfg.box_weight)
