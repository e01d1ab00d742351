"""The commands that measure a model on a data set of one's own."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mm.files import replace_text

if TYPE_CHECKING:
    from mm.evaluation.report import Outcome

Model = Annotated[
    str, typer.Option("--model", "-m", metavar="NAME", help="A name from `mm models`, a hub id, or a folder.")
]
Instances = Annotated[Path, typer.Argument(metavar="DATA", help="The JSON file of instances.")]
Folder = Annotated[Path, typer.Argument(metavar="DATA", help="The folder with images/ and the truth beside it.")]
Pictures = Annotated[
    Path | None, typer.Option("--images", metavar="DIR", help="Where the pictures lie, if not beside the JSON file.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures.")]
Worst = Annotated[int, typer.Option(min=0, help="List so many of the worst cases.")]
Save = Annotated[
    Path | None, typer.Option("--save", metavar="DIR", help="Draw the worst cases, truth beside answer, into DIR.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the whole report as JSON.")]
Json = Annotated[bool, typer.Option("--json", help="Print the whole report as one JSON object.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1 or mps.")]


def detect(
    data: Instances,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="coco or lvis.")] = "coco",
    images: Pictures = None,
    model: Model = "tiny",
    limit: Limit = None,
    worst: Worst = 0,
    save: Save = None,
    out: Out = None,
    json: Json = False,
    device: Device = "cpu",
) -> None:
    """Measure boxes: average precision and recall by COCO's or LVIS's rules.

    Every picture is asked for the name of every category. AP_rare, AP_common and AP_frequent are LVIS's APr, APc and
    APf. A case is as bad as its own AP50 is low. A picture that cannot be read is reported and left out.

    \b
    mm eval detect annotations/instances_val2017.json --images val2017 --model photo --limit 500 --out report.json
    mm eval detect lvis_v1_val.json --format lvis --images coco --model photo --worst 20 --save worst
    """

    def work() -> Outcome:
        from mm.evaluation.report import evaluate_detect

        return evaluate_detect(
            data, model=model, form=form, images=images, limit=limit, worst=worst, device=device, progress=_shown()
        )

    _run("detect", work, worst=worst, save=save, out=out, json=json)


def segment(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The JSON file of instances, or the folder.")],
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="coco, lvis or folder.")] = "coco",
    images: Pictures = None,
    threshold: Annotated[float, typer.Option(help="The probability from which a pixel belongs to a mask.")] = 0.5,
    model: Model = "tiny",
    limit: Limit = None,
    worst: Worst = 0,
    save: Save = None,
    out: Out = None,
    json: Json = False,
    device: Device = "cpu",
) -> None:
    """Measure masks: mean and cumulative intersection over union.

    Every picture is asked for the labels that it shows; all things of a label are one mask. mIoU is the mean over
    masks, cIoU all intersections over all unions: PhraseCut's mean and cumulative IoU; cIoU is CLIPSeg's IoU_FG.

    A folder holds images/ and masks/LABEL/*.png, black and white, of the same names.

    \b
    mm eval segment annotations/instances_val2017.json --images val2017 --model photo --limit 500
    mm eval segment garden/ --format folder --model photo --worst 10 --save worst
    """

    def work() -> Outcome:
        from mm.evaluation.report import evaluate_segment

        return evaluate_segment(
            data, model=model, form=form, images=images, threshold=threshold, limit=limit, worst=worst, device=device,
            progress=_shown(),
        )  # fmt: skip

    _run("segment", work, worst=worst, save=save, out=out, json=json)


def matte(
    data: Folder,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="folder.")] = "folder",
    label: Annotated[
        str | None, typer.Option("--label", "-l", metavar="TEXT", help="What all of alpha/*.png show.")
    ] = None,
    matter: Annotated[
        str | None, typer.Option(metavar="NAME", help="A ViTMatte checkpoint, folder or hub id, as for `mm matte`.")
    ] = None,
    model: Model = "tiny",
    limit: Limit = None,
    worst: Worst = 0,
    save: Save = None,
    out: Out = None,
    json: Json = False,
    device: Device = "cpu",
) -> None:
    """Measure mattes: SAD in thousands, MSE, MAD, Grad and Conn, the means over all mattes.

    A folder holds images/ and alpha/LABEL/*.png, grey, of the same names; or alpha/*.png, and --label says what they
    show. A case is as bad as its MAD is high.

    \b
    mm eval matte portraits/ --label person --model photo
    mm eval matte animals/ --model ./my-model --worst 10 --save worst --out report.json
    """

    def work() -> Outcome:
        from mm.evaluation.report import evaluate_matte

        return evaluate_matte(
            data, model=model, form=form, label=label, method="trimap" if matter else "clipmat", matter=matter,
            limit=limit, worst=worst, device=device, progress=_shown(),
        )  # fmt: skip

    _run("matte", work, worst=worst, save=save, out=out, json=json)


def _shown() -> bool:
    return sys.stderr.isatty()


def _run(
    task: str, work: Callable[[], Outcome], *, worst: int, save: Path | None, out: Path | None, json: bool
) -> None:
    """Prints and writes what `work` found. Exit code 1 where some picture failed, 2 where nothing could be measured."""
    from mm.cli import render
    from mm.errors import MMError
    from mm.results.lettering import visible

    _check_places(worst, save, out)
    try:
        outcome = work()
        report = outcome.report
        if save is not None:
            _draw(task, outcome, save)
        text = json_format.dumps(report, indent=2, allow_nan=False)
        if out is not None:
            replace_text(out, text + "\n")
    except (MMError, OSError) as error:
        said = str(error) if isinstance(error, MMError) else error.strerror or type(error).__name__
        typer.echo(f"error: {visible(said)}", err=True)
        raise typer.Exit(2) from error
    for each in report["failed"]:
        said = each["message"] if each["name"] in each["message"] else f"{each['name']}: {each['message']}"
        typer.echo(f"error: {visible(said)}", err=True)
    typer.echo(text if json else render.table(_rows(report)))
    if report["failed"]:
        typer.echo(f"{len(report['failed'])} of {len(report['failed']) + report['pictures']} failed", err=True)
        raise typer.Exit(1)


def _rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures over all labels, then the worst cases; those of each label are in the JSON."""
    from mm.cli import render

    rows = render.flatten({key: report[key] for key in ("model", "data", "labels", "pictures")} | report["figures"])
    for each in report["worst"]:
        named = {key: value for key, value in each.items() if key not in ("name", "label", "file")}
        label = f" {each['label']}" if each["label"] else ""
        rows += [{"measure": f"{each['name']}{label} {key}", "value": value} for key, value in named.items()]
    return rows


def _check_places(worst: int, save: Path | None, out: Path | None) -> None:
    """Where something is to be written, checked and made before any work."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise typer.BadParameter(f"cannot write the file {out}")
    if save is None:
        return
    if not worst:
        raise typer.BadParameter("--save draws the worst cases: say how many, for example --worst 10")
    try:
        save.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"cannot make the folder {save}: {error.strerror}") from error
    if not os.access(save, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"cannot write into the folder {save}")


def _draw(task: str, outcome: Outcome, save: Path) -> None:
    """Draws the worst cases, numbered from the worst, and adds the names of the files to the report."""
    from mm.cli.run import SaveFolder

    folder = SaveFolder(save, task)
    for number, (case, entry) in enumerate(zip(outcome.worst, outcome.report["worst"], strict=True), start=1):
        name = Path(case.name).stem + (f"_{case.mark.label}" if case.mark.label else "")
        entry["file"] = folder.save(f"{number:03d}_{name.replace('.', '_')}", case.drawing()).name
