"""COCO's figures of detections (https://cocodataset.org/#detection-eval): average precision and recall of boxes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mm.metrics.curves import SIZES, BoxRecord
from mm.metrics.truth import BoxTruth, TruthSet, place_of, truth_from_coco
from mm.results.fields import wrong
from mm.types import Detections

_LIMITS = (1, 10, 100)


class DetectionScore:
    """COCO's figures of a data set that streams through, picture by picture.

    labels: all that may be found or be true.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._record = BoxRecord(labels, _LIMITS)

    def add(self, found: Detections, truth: BoxTruth) -> None:
        """Take one picture; either may be empty. All boxes found belong here, without a threshold.

        Raises:
            InputError: a label is none of those that are scored.
        """
        self._record.add(found, truth)

    def figures(self, labels: Collection[str] | None = None) -> dict[str, Any]:
        """Figures from 0 to 1, of all labels or of `labels`; None where the truth has nothing that would count.

        AP: the mean over IoU thresholds 0.5, 0.55, … 0.95, over 101 recalls, and over the labels that the truth
        has; AP50 and AP75 at one threshold; AP_small, AP_medium and AP_large of things below 32² square pixels,
        up to 96², and above. AR1, AR10, AR100: recall with that many boxes of each label in each picture, the
        mean over the thresholds and labels; AR_small, AR_medium, AR_large: with 100. The APs count 100, too.
        per_label: the AP of each label.
        """
        record, curves = self._record, self._record.curves()
        known = {label: place for place, label in enumerate(record.labels)}
        places = sorted({place_of(label, known) for label in (known if labels is None else labels)})
        figures: dict[str, Any] = {"AP": curves.ap(places)}
        figures |= {f"AP{iou * 100:.0f}": curves.ap(places, iou=iou) for iou in (0.5, 0.75)}
        figures |= {f"AP_{area}": curves.ap(places, area=area) for area in SIZES}
        figures |= {f"AR{limit}": curves.ar(places, limit=limit) for limit in _LIMITS}
        figures |= {f"AR_{area}": curves.ar(places, area=area) for area in SIZES}
        return figures | {"per_label": {record.labels[place]: curves.ap([place]) for place in places}}


def detection_figures(dataset: Mapping[str, Any], found: Mapping[int, Detections]) -> dict[str, Any]:
    """The figures (as `DetectionScore.figures`) of boxes against a data set in COCO's layout, as `json` reads it.

    found: for the id of every image what was found in it, if only `Detections.empty`.

    Raises:
        InputError: the data set is malformed, `found` has other images than it or of another size, or a label
            is none of its categories.
    """
    truth = truth_from_coco(dataset)
    score = DetectionScore(truth.labels)
    for boxes, shown in paired(truth, found):
        score.add(boxes, shown)
    return score.figures()


def paired(truth: TruthSet, found: Mapping[int, Detections]) -> list[tuple[Detections, BoxTruth]]:
    """What was found and what is true, picture by picture; both must have the same ones, in the same size."""
    if missing := [key for key in truth.pictures if key not in found]:
        wrong("found", "what was found in every image of the data set", f"nothing for {_several(missing)}")
    if unknown := [key for key in found if key not in truth.pictures]:
        wrong("found", "ids of images of the data set", _several(unknown))
    for key, size_hw in truth.sizes_hw.items():
        if found[key].size_hw != size_hw:
            wrong(f"found[{key}].size_hw", f"{size_hw}, as the image of the data set", str(found[key].size_hw))
    return [(found[key], shown) for key, shown in truth.pictures.items()]


def _several(ids: Sequence[Any]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
