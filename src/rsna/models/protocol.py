"""What a model has to offer. Training, prediction and the commands know no more about a model than this.

Class indices: opacity is the last class. A batch of targets, from data.loader.collate: boxes (B, N, 4) float32 cxcywh
in [0, 1], by falling area, padded with zeros; mask (B, N) bool, False for padding and for boxes outside the image;
label (B,) int64; row (B,) int64, the image's place in its samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Outputs = dict[str, Tensor]
Targets = dict[str, Tensor]
BoxesOfImages = Sequence[NDArray[np.float64]]  # of each image (n_k, 4)


class DetectionModel(nn.Module):
    """Base class of all models; built as Class(encoder, size, num_classes, settings), see registry.register.

    An encoder whose children are called layer1 to layer4 can be frozen in part.
    """

    encoder: Any  # a module, with the numbers of channels of its maps as out_channels
    predicts_boxes = True
    measures_loss_weights = False  # whether the loss measures the weights of its parts while it trains

    def forward(self, images: Tensor) -> Outputs:
        """images (B, 1, S, S) uint8 -> whatever loss and decode need; float32 also under mixed precision."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Named scalars: `loss`, which is minimised, and its parts, which are only reported."""
        raise NotImplementedError

    def decode(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, n, 4) xyxy in [0, 1], scores (B, n) in [0, 1], class probabilities (B, num_classes)."""
        raise NotImplementedError

    def init_priors(self, boxes_cxcywh: BoxesOfImages, class_rates: Tensor) -> None:
        """Initialise the biases, so that an untrained network answers with the training set's averages.

        boxes_cxcywh: of the training images, in [0, 1], by falling area; class_rates: (num_classes,).
        """

    def hold_loss_weights(self) -> None:
        """Stop measuring the weights of the loss and keep them: a range test needs one and the same loss."""


@torch.no_grad()
def set_prior(layer: Any, bias: Tensor, factor: float = 0.1) -> None:
    """Start a linear layer or convolution with this bias, and with weights times factor that change little about it."""
    layer.weight.mul_(factor)
    layer.bias.copy_(bias)


def mean_largest_box(boxes_cxcywh: BoxesOfImages) -> Tensor:
    """(4,) float32 cxcywh: the mean of the largest box of each image that has boxes; see init_priors."""
    return torch.from_numpy(np.mean([boxes[0] for boxes in boxes_cxcywh if len(boxes)], axis=0)).float()
