"""A model's figures on a data set of one's own, with what failed and what came out worst."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm.checkpoints.loading import load
from mm.checkpoints.photo import for_matte, for_task
from mm.errors import InputError, nearest
from mm.evaluation.coco import CocoTruth
from mm.evaluation.folder import GreyFolder
from mm.evaluation.run import Case, Trial, walk
from mm.evaluation.trials import DetectTrial, MatteTrial, SegmentTrial
from mm.heads.vitmatte import VitMatte, load_vitmatte
from mm.joined import Joined
from mm.tasks.each import Model, unit
from mm.tasks.matte import Method
from mm.version import __version__


@dataclass(frozen=True)
class Outcome:
    """report: all of it as plain values for JSON. worst: the cases of the report's "worst", in its order."""

    report: dict[str, Any]
    worst: tuple[Case, ...]


def evaluate_detect(
    data: str | os.PathLike[str],
    *,
    model: Model = "tiny",
    form: str = "coco",
    images: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    worst: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> Outcome:
    """Average precision and recall of boxes, every picture asked for every category of the data set by name.

    data: a JSON file of instances. form: `coco`, with the figures of `mm.metrics.detection.DetectionScore`, or
    `lvis`, with those of `mm.metrics.lvis.LvisScore`. images: the folder of its pictures, where it does not lie beside
    the file. limit: only so many pictures, the first. worst: how many cases to remember; a picture counts by its own
    AP50. progress: a bar on standard error.

    Raises:
        InputError: the data set is not there, not of this form, malformed or empty. CheckpointError: no such model.
    """
    _check_form("detect", form, ("coco", "lvis"))
    home = Path(data)
    lvis = form == "lvis"
    truth = CocoTruth(home, images=None if images is None else Path(images), lvis=lvis)
    asked = _model(model, "detect", "detector", device)
    trial = DetectTrial(asked, truth, lvis=lvis, ranked=worst > 0)
    head = _head("detect", asked, home, form, truth.labels)
    return _outcome(head, trial, limit=limit, worst=worst, progress=progress)


def evaluate_segment(
    data: str | os.PathLike[str],
    *,
    model: Model = "tiny",
    form: str = "coco",
    images: str | os.PathLike[str] | None = None,
    threshold: float = 0.5,
    limit: int | None = None,
    worst: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> Outcome:
    """The figures of `mm.metrics.segmentation.MaskScore`, of one mask for each label that a picture shows.

    data: a JSON file of instances for `coco` and `lvis`, where all things of a label are one mask; for `folder` a
    folder with `images/` and `masks/LABEL/*.png`, black and white. threshold: as in `mm.segment`. The rest is as for
    `evaluate_detect`; a mask counts by its IoU.

    Raises:
        InputError, CheckpointError: as `evaluate_detect`.
    """
    _check_form("segment", form, ("coco", "lvis", "folder"))
    home, least = Path(data), unit("threshold", threshold)
    if form == "folder":
        if images is not None:
            raise InputError("images: pictures of a folder lie in its images/; only coco and lvis take another")
        truth: CocoTruth | GreyFolder = GreyFolder(home, "masks")
    else:
        truth = CocoTruth(home, images=None if images is None else Path(images), lvis=form == "lvis", masks=True)
    asked = _model(model, "segment", "segmenter", device)
    head = _head("segment", asked, home, form, truth.labels)
    return _outcome(head, SegmentTrial(asked, truth, least), limit=limit, worst=worst, progress=progress)


def evaluate_matte(
    data: str | os.PathLike[str],
    *,
    model: Model = "tiny",
    form: str = "folder",
    label: str | None = None,
    method: Method = "clipmat",
    matter: str | os.PathLike[str] | VitMatte | None = None,
    limit: int | None = None,
    worst: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> Outcome:
    """SAD in thousands, MSE, MAD, Grad and Conn of `mm.metrics.matting.MattingScore`, the means over all mattes.

    data: a folder with `images/` and `alpha/LABEL/*.png`, grey; or, with `label`, `alpha/*.png` that all show it.
    method, matter: as in `mm.matte`. The rest is as for `evaluate_detect`; a matte counts by its MAD.

    Raises:
        InputError, CheckpointError: as `evaluate_detect`.
    """
    _check_form("matte", form, ("folder",))
    home = Path(data)
    truth = GreyFolder(home, "alpha", label=label)
    name, method, matter = for_matte(model, method, matter)
    asked = _model(name, "matte", "matter" if method == "clipmat" else "segmenter", device)
    if matter is not None and not isinstance(matter, VitMatte):
        matter = load_vitmatte(matter)
        matter.network.to(device)
    trial = MatteTrial(asked, truth, {"method": method, "matter": matter})
    head = _head("matte", asked, home, form, truth.labels)
    return _outcome(head, trial, limit=limit, worst=worst, progress=progress)


def _check_form(task: str, form: str, known: Sequence[str]) -> None:
    if form not in known:
        raise InputError(f"format: {task} reads {', '.join(known)}, got {form!r}.{nearest(str(form), known)}")


def _model(model: Model, task: str, part: str, device: str) -> Joined:
    """The model with the part that the task needs, or an error before any picture is read."""
    found = model if isinstance(model, Joined) else load(for_task(model, task), device=device)
    found.need(part)
    return found


def _head(task: str, model: Joined, data: Path, form: str, labels: Sequence[str]) -> dict[str, Any]:
    made = {"model": model.name, "revision": model.revision, "sha256": model.sha256, "mm": __version__}
    return {"task": task, **made, "data": data.name, "format": form, "labels": len(labels)}


def _outcome(head: dict[str, Any], trial: Trial, *, limit: int | None, worst: int, progress: bool) -> Outcome:
    done = walk(trial, limit=limit, worst=worst, progress=progress)
    figures = trial.figures()
    per_label = figures.pop("per_label")
    failed = [{key: value for key, value in each.to_dict().items() if key != "type"} for each in done.failed]
    cases = [{"name": each.name, "label": each.mark.label, **each.mark.figures} for each in done.worst]
    counts = {"pictures": done.pictures, "failed": failed}
    return Outcome(head | counts | {"figures": figures, "per_label": per_label, "worst": cases}, done.worst)
