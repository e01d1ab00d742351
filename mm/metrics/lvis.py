"""LVIS's figures of detections (Gupta, Dollár, Girshick, "LVIS", CVPR 2019, section 2, "Evaluation details").

Its truth is federated: each picture was looked through for some labels only, so what is found of the others
counts neither for nor against. A picture is verified for the labels of its boxes and those known to be `absent`;
where its boxes of a label are `incomplete`, a box that hits none of them does not count against.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.errors import InputError
from mm.metrics.curves import SIZES, BoxRecord
from mm.metrics.detection import paired
from mm.metrics.truth import BoxTruth, truth_from_coco
from mm.results.fields import entry_of
from mm.types import Detections

_LIMIT = 300
_FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


class LvisScore:
    """LVIS's figures of a data set that streams through, picture by picture.

    frequencies: for every label, in how many pictures of the training set it is: "r" (rare, in up to 10),
        "c" (common, up to 100) or "f" (frequent).
    """

    def __init__(self, frequencies: Mapping[str, str]) -> None:
        for label, frequency in frequencies.items():
            if frequency not in _FREQUENCIES:
                raise InputError(f'frequency of label {label!r}: expected "r", "c" or "f", got {frequency!r}.')
        self._frequencies = tuple(frequencies.values())
        self._record = BoxRecord(tuple(frequencies), (_LIMIT,), federated=True)

    def add(self, found: Detections, truth: BoxTruth) -> None:
        """Take one picture. Its best 300 boxes count, those of all labels together; one without area does not.

        Raises:
            InputError: a label is none of those that are scored, or `truth` has a crowd, which LVIS has not.
        """
        if truth.crowd.any():
            raise InputError("truth: expected boxes of single things, got a crowd, which LVIS does not have.")
        best = found.top(_LIMIT)
        self._record.add(best[best.areas > 0], truth)  # LVIS's own evaluation leaves boxes without area out, too.

    def figures(self) -> dict[str, Any]:
        """Figures from 0 to 1; None where the truth has nothing that would count.

        AP, AP50, AP75, AP_small, AP_medium, AP_large: as COCO's (see `DetectionScore.figures`). AP_rare,
        AP_common, AP_frequent: the AP of the labels of that frequency. AR300, AR_small, AR_medium, AR_large:
        recall with 300 boxes. per_label: the AP of each label.
        """
        record, curves = self._record, self._record.curves()
        figures: dict[str, Any] = {"AP": curves.ap()}
        figures |= {f"AP{iou * 100:.0f}": curves.ap(iou=iou) for iou in (0.5, 0.75)}
        figures |= {f"AP_{area}": curves.ap(area=area) for area in SIZES}
        for key, name in _FREQUENCIES.items():
            figures[f"AP_{name}"] = curves.ap([i for i, each in enumerate(self._frequencies) if each == key])
        figures[f"AR{_LIMIT}"] = curves.ar()
        figures |= {f"AR_{area}": curves.ar(area=area) for area in SIZES}
        return figures | {"per_label": {label: curves.ap([place]) for place, label in enumerate(record.labels)}}


def lvis_figures(dataset: Mapping[str, Any], found: Mapping[int, Detections]) -> dict[str, Any]:
    """The figures (as `LvisScore.figures`) of boxes against a data set in LVIS's layout, as `json` reads it.

    found: for the id of every image what was found in it, if only `Detections.empty`; labels as the "name" of
        the categories.

    Raises:
        InputError: the data set is malformed, `found` has other images than it or of another size, or a label
            is none of its categories.
    """
    truth = truth_from_coco(dataset)
    for place, image in enumerate(dataset["images"]):  # Without this list, no false box would ever count.
        entry_of(f"images[{place}]", image, "neg_category_ids")
    score = LvisScore(dict(zip(truth.labels, truth.frequencies, strict=True)))
    for boxes, shown in paired(truth, found):
        score.add(boxes, shown)
    return score.figures()
