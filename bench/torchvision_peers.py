"""torchvision's one-stage detectors as models of this project: the peers of bench/detectors.py.

torchvision's own heads, losses and post-processing on torchvision's feature pyramid (256 channels, strides 8, 16, 32).
Where they differ from torchvision's defaults, which are made for inputs of 800 px, it is in their favour:

- Levels end at stride 32: of an input of 128 px P6 and P7 would have 4 and 1 locations.
- RetinaNet's anchors are 1/8, 1/4 and 1/2 of the side times 1, 2^(1/3), 2^(2/3), in three shapes: at 128 px 16 to 102
  px for boxes of 20 to 60 px. torchvision's begin at 32 px.
- FCOS regresses distances up to 1/4 of the side at stride 8, up to 1/2 at 16, and beyond at 32 (torchvision: 64 and
  128 px, so that at 128 px all boxes would fall to one level). Centres are sampled within 1.5 strides, as by default.
- NMS at IoU .2, as true boxes hardly ever overlap, and no lower limit for scores.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, box_convert

from rsna.core.config import setting
from rsna.models.backbone import normalise
from rsna.models.protocol import DetectionModel, Outputs, Targets
from rsna.models.registry import register

N_LEVELS, FINEST_STRIDE = 3, 8
COMMON: dict[str, Any] = {"score_thresh": 0.0, "nms_thresh": 0.2, "detections_per_img": 8}


@dataclass(frozen=True)
class Settings:
    """The settings of the peers alone."""

    channels: int = setting(256, "channels of the feature pyramid, a multiple of 32", limits=(32, 4096))


class TorchvisionModel(DetectionModel):
    """A one-stage detector of torchvision: the parts of its `forward`, without its resizing, one after the other."""

    def __init__(self, encoder: nn.Module, size: int, num_classes: int, settings: Settings) -> None:
        super().__init__()
        self.encoder, self.num_classes = encoder, num_classes
        self.pyramid = FeaturePyramidNetwork(encoder.out_channels[-N_LEVELS:], settings.channels)
        backbone = nn.Identity()  # asked for its number of channels and for nothing else
        backbone.out_channels = settings.channels
        self.detector = self.make_detector(backbone, size)

    def make_detector(self, backbone: nn.Module, size: int) -> Any:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Outputs:
        """What the head gives at all A anchors (B, A, ...); anchors (A, 4) xyxy in pixels; how many each level has."""
        levels = self.encoder(normalise(images))[-N_LEVELS:]
        features = list(self.pyramid({str(k): level for k, level in enumerate(levels)}).values())
        outputs = {name: value.float() for name, value in self.detector.head(features).items()}
        sides = [(images.shape[-2], images.shape[-1])] * len(images)
        generator = self.detector.anchor_generator
        # float32: bfloat16 is too coarse for coordinates
        anchors = generator(ImageList(images, sides), [level.float() for level in features])[0]
        per_location = generator.num_anchors_per_location()[0]
        counts = torch.tensor([per_location * level.shape[-2] * level.shape[-1] for level in features])
        return {**outputs, "anchors": anchors, "counts": counts, "side": torch.tensor(images.shape[-1])}

    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """torchvision's losses, added up as in its reference training."""
        boxes = box_convert(targets["boxes"], "cxcywh", "xyxy") * int(outputs["side"])
        truth = [
            {"boxes": own[mask], "labels": torch.zeros(int(mask.sum()), dtype=torch.int64, device=own.device)}
            for own, mask in zip(boxes, targets["mask"], strict=True)
        ]
        # FCOS assigns boxes to levels
        more = [outputs["counts"].tolist()] if isinstance(self.detector, FCOS) else []
        parts = self.detector.compute_loss(truth, outputs, [outputs["anchors"]] * len(boxes), *more)
        return {"loss": sum(parts.values()), **{name: value.detach() for name, value in parts.items()}}

    def decode(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes after NMS, padded by empty ones. The image's probability is that of its most confident box."""
        counts, side = outputs["counts"].tolist(), int(outputs["side"])
        heads = {name: list(value.split(counts, dim=1)) for name, value in outputs.items() if value.ndim == 3}
        n_images = len(outputs["cls_logits"])
        anchors = [list(outputs["anchors"].split(counts))] * n_images
        found = self.detector.postprocess_detections(heads, anchors, [(side, side)] * n_images)
        absent = [COMMON["detections_per_img"] - len(own["scores"]) for own in found]
        boxes = torch.stack([pad(own["boxes"] / side, (0, 0, 0, n)) for own, n in zip(found, absent, strict=True)])
        scores = torch.stack([pad(own["scores"], (0, n)) for own, n in zip(found, absent, strict=True)])
        top = scores.amax(1, keepdim=True)
        others = (1 - top).expand(-1, self.num_classes - 1) / (self.num_classes - 1)
        return boxes, scores, torch.cat([others, top], dim=1)


@register("torchvision_retinanet", Settings)
class TorchvisionRetinaNet(TorchvisionModel):
    """RetinaNet (Lin et al. 2017) with the head of retinanet_resnet50_fpn_v2: group normalisation and GIoU."""

    def make_detector(self, backbone: nn.Module, size: int) -> Any:
        sizes = [tuple(size / part * 2 ** (k / 3) for k in range(3)) for part in (8, 4, 2)]
        anchors = AnchorGenerator(tuple(sizes), ((0.5, 1.0, 2.0),) * N_LEVELS)
        norm = partial(nn.GroupNorm, 32)
        head = RetinaNetHead(backbone.out_channels, anchors.num_anchors_per_location()[0], 1, norm_layer=norm)
        head.regression_head._loss_type = "giou"  # as torchvision sets it
        return RetinaNet(backbone, 1, anchor_generator=anchors, head=head, **COMMON)


@register("torchvision_fcos", Settings)
class TorchvisionFCOS(TorchvisionModel):
    """FCOS (Tian et al. 2019) with torchvision's head: group normalisation and GIoU."""

    def make_detector(self, backbone: nn.Module, size: int) -> Any:
        # a level regresses distances from 4 to 8 times its anchor, and samples centres within so many anchors
        sizes = [size // part for part in (32, 16, 8)]
        anchors = AnchorGenerator(tuple((side,) for side in sizes), ((1.0,),) * N_LEVELS)
        radius = 1.5 * FINEST_STRIDE / sizes[0]
        return FCOS(backbone, 1, anchor_generator=anchors, center_sampling_radius=radius, **COMMON)
