"""What the report's sections are made from, and what they are made into: plots and tables with their text."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from rsna.data.competition import CLASSES
from rsna.evaluation.metric import image_scores, top_confidences
from rsna.evaluation.runs import Resampling, Run
from rsna.evaluation.subgroups import groups_of_images, one_of


@dataclass(frozen=True)
class Plot:
    """A figure with what a reader needs: how to read it, a text alternative, and where its numbers come from."""

    name: str
    title: str
    svg: str
    how: str  # how to read it
    alt: str  # text alternative
    source: str = "oof.csv"  # file that holds the numbers
    writer: str = "ensemble"  # the command that writes that file


@dataclass(frozen=True)
class Table:
    """Rows under header cells; the first cell of each row is its header."""

    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class ReportData:
    """All that the sections are made from. Boxes in original pixels."""

    run: Run
    truth: pd.DataFrame  # true boxes of the run's images
    folds: pd.DataFrame  # rows of folds.csv of the run's images, index patientId
    geometry: pd.DataFrame  # index patientId: where each image lies in its cached square
    size: int  # px, side of the cached images
    sweep: pd.DataFrame  # threshold.csv
    histories: dict[int, pd.DataFrame]  # fold -> history.csv
    resampling: Resampling
    command: Callable[[str], str]  # name of a command -> what to type

    @cached_property
    def kept(self) -> pd.DataFrame:
        return self.run.kept

    @cached_property
    def by_iou(self) -> pd.DataFrame:
        """Image scores, one column per IoU threshold, of the images that count."""
        return image_scores(self.truth, self.kept)

    @cached_property
    def scores(self) -> pd.Series:
        return self.by_iou.mean(axis=1)

    @cached_property
    def classes(self) -> pd.Series:
        return one_of(self.folds["class"], CLASSES)

    @cached_property
    def top(self) -> pd.Series:
        """The highest confidence of each image, in the order of `folds`."""
        return top_confidences(self.run.predictions).reindex(self.folds.index)

    @cached_property
    def positive(self) -> pd.Series:
        return pd.Series(self.folds.index.isin(self.truth["patientId"]), index=self.folds.index)

    @cached_property
    def groups(self) -> pd.DataFrame:
        return groups_of_images(self.folds, self.truth, self.geometry, self.size)
