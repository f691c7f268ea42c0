"""The interface of a model. Training, prediction and the commands use nothing else of a model.

Opacity is the last class. A batch of targets, from data.loader.collate, has boxes (B, N, 4) float32 cxcywh in [0, 1],
largest first, padded with zeros; mask (B, N) bool, False for padding and for boxes outside the image; label (B,) int64;
row (B,) int64, the image's index in its Samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Outputs = dict[str, Tensor]
Targets = dict[str, Tensor]
BoxesOfImages = Sequence[NDArray[np.float64]]  # one array (n_k, 4) per image


class DetectionModel(nn.Module):
    """Base class of all models; built as Class(encoder, size, num_classes, settings), see registry.register.

    size: side of the input, pixels. An encoder whose children are named layer1 to layer4 can be frozen in part.
    """

    encoder: Any  # a module; its out_channels lists the number of channels of each feature map
    predicts_boxes = True
    measures_loss_weights = False  # whether the loss measures the weights of its parts during training

    def forward(self, images: Tensor) -> Outputs:
        """images (B, 1, S, S) uint8 -> the tensors that loss and decode need; float32, even under mixed precision."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Named scalars: `loss`, which is minimised, and its parts, detached, which are only reported."""
        raise NotImplementedError

    def decode(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, n, 4) xyxy in [0, 1], scores (B, n) in [0, 1], class probabilities (B, num_classes)."""
        raise NotImplementedError

    def init_priors(self, boxes_cxcywh: BoxesOfImages, class_rates: Tensor) -> None:
        """Initialise the biases so that the untrained network predicts the training set's averages.

        boxes_cxcywh: the true boxes of each training image, in [0, 1], largest first; class_rates: (num_classes,).
        """

    def hold_loss_weights(self) -> None:
        """Stop measuring the loss weights and keep their values: a range test needs a loss that does not change."""


@torch.no_grad()
def set_prior(layer: Any, bias: Tensor, factor: float = 0.1) -> None:
    """Set a layer's bias, and scale its weights by `factor` so that the initial outputs stay close to the bias."""
    layer.weight.mul_(factor)
    layer.bias.copy_(bias)


def mean_largest_box(boxes_cxcywh: BoxesOfImages) -> Tensor:
    """The mean of the largest box of each image that has boxes: (4,) float32 cxcywh; argument as in init_priors."""
    return torch.from_numpy(np.mean([boxes[0] for boxes in boxes_cxcywh if len(boxes)], axis=0)).float()
