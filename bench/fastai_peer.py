"""fastai's learner on this project's samples and networks: the peer of bench/train.py and bench/quality.py."""

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rsna.data.dataset import Samples
from rsna.training.optim import stage_of

warnings.filterwarnings("ignore", message=".*torch.jit.*")
try:
    from fastai.vision import all as fastai
except ModuleNotFoundError:
    sys.exit("this benchmark needs its peer: pip install -r requirements-bench.txt")

CPU = torch.device("cpu")


def make_dataloaders(
    train: Samples,
    valid: Samples,
    batch_size: int,
    augmentation: dict[str, Any],
    device: torch.device = CPU,
    workers: int = 0,
) -> Any:
    """fastai DataLoaders of images, one box each, the largest (the whole image for those without), and a class.

    augmentation: keywords of fastai's aug_transforms, which it applies to batches.
    """
    paths, labels = [*train.paths, *valid.paths], [*train.labels.tolist(), *valid.labels.tolist()]
    largest = [boxes_xyxy[:1].tolist() for boxes_xyxy in (*train.boxes_xyxy, *valid.boxes_xyxy)]
    size = float(fastai.PILImageBW.create(paths[0]).size[0])
    boxes = [box or [[0.0, 0.0, size, size]] for box in largest]
    block = fastai.DataBlock(
        blocks=(
            fastai.ImageBlock(cls=fastai.PILImageBW),
            fastai.BBoxBlock,
            fastai.BBoxLblBlock(vocab=sorted(set(labels)), add_na=False),
        ),
        # items are row numbers: fastai takes a tuple apart
        get_x=lambda k: paths[k],
        get_y=[lambda k: boxes[k], lambda k: [labels[k]]],
        splitter=fastai.IndexSplitter(list(range(len(train.ids), len(paths)))),
        batch_tfms=fastai.aug_transforms(**augmentation) if augmentation else None,
        n_inp=1,
    )
    return block.dataloaders(list(range(len(paths))), bs=batch_size, num_workers=workers, device=device)


class Wrapped(nn.Module):
    """A network of this project that takes what fastai's loaders give: grey levels from 0 to 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images.as_subclass(Tensor) * 255)


def make_learner(dataloaders: Any, model: Any, **settings: Any) -> Any:
    """A fastai Learner whose loss is the network's own."""

    def loss(outputs: Any, boxes: Tensor, labels: Tensor, **_: Any) -> Tensor:
        label = labels.as_subclass(Tensor)[:, 0].long()
        corners = boxes.as_subclass(Tensor)[:, 0] / 2 + 0.5
        box = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
        has_box = label == label.new_tensor(len(dataloaders.vocab) - 1)
        targets = {"boxes": box[:, None], "mask": has_box[:, None], "label": label}
        result: Tensor = model.loss(outputs, targets)["loss"]
        return result

    return fastai.Learner(dataloaders, Wrapped(model), loss_func=loss, splitter=split, **settings)


def split(wrapped: Wrapped) -> list[list[nn.Parameter]]:
    """The layer groups of the post: stem to stage 2, stages 3 and 4, head."""
    groups: list[list[nn.Parameter]] = [[], [], []]
    for name, parameter in wrapped.model.named_parameters():
        groups[(stage_of(name) > 2) + (stage_of(name) > 4)].append(parameter)
    return groups
