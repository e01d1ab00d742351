"""The commands that look at pictures. Each one names a task, its own options, and how a result reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGES", help="Picture files, folders of pictures, or URLs (--allow-urls)."),
]
Image = Annotated[str, typer.Argument(metavar="IMAGE", help="A picture file, or a URL (--allow-urls).")]
Labels = Annotated[list[str], typer.Option("--label", "-l", metavar="TEXT", help="What to look for; repeat for more.")]
MaybeLabels = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="TEXT", help="What to look for; repeat for more.")
]
Like = Annotated[str | None, typer.Option(metavar="IMAGE", help="Instead of labels: a picture of what to look for.")]
Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="NAME", help="A name from `mm models`, a hub id, or a saved folder."),
]
Cache = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", help="Keep what the image tower finds in DIR for later runs.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per picture and line.")]
Save = Annotated[
    Path | None, typer.Option("--save", metavar="DIR", help="Write each picture, annotated, as PNG into DIR.")
]
AllowUrls = Annotated[bool, typer.Option("--allow-urls", help="Let an image be fetched over http(s).")]


def detect(
    images: Images,
    labels: MaybeLabels = None,
    like: Like = None,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Boxes that score less are left out.")] = 0.3,
    nms: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Of two boxes of one label that overlap more (IoU), the better stays."),
    ] = 0.5,
    model: Model = "tiny",
    cache: Cache = None,
    json: Json = False,
    save: Save = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Find things by name, or by a picture of one, and print their boxes.

    A box is left, top, right, bottom in pixels of the upright picture.

    \b
    mm detect drawing.png -l car -l "red boat"
    mm detect holiday/ -l tree --threshold 0.5 --save out
    mm detect shelf.jpg --like mug.png -m owlv2-base-patch16-ensemble
    """
    from mm.cli import render
    from mm.cli.run import Request, run_pictures
    from mm.tasks.detect import detect as task

    _one_of(labels, like)
    run_pictures(
        Request("detect", images, json, save, allow_urls),
        lambda picture: task(
            picture, labels, like=like, model=model, cache=cache, threshold=threshold, nms=nms, allow_urls=allow_urls
        ),
        render.detections,
    )


def segment(
    images: Images,
    labels: MaybeLabels = None,
    like: Like = None,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="Pixels that score less are left out.")] = 0.5,
    tile: Annotated[
        int | None, typer.Option(min=32, help="Read larger pictures in overlapping squares of this many pixels.")
    ] = None,
    model: Model = "tiny",
    cache: Cache = None,
    json: Json = False,
    save: Save = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Mark the pixels of things by name, or of what looks like a picture of one.

    Prints the share of the picture that each thing covers; --save shows the masks.

    \b
    mm segment drawing.png -l car -l tree --save out
    mm segment street.jpg -l "traffic light" -m clipseg-rd64-refined --tile 704
    """
    from mm.cli import render
    from mm.cli.run import Request, run_pictures
    from mm.tasks.segment import segment as task

    _one_of(labels, like)
    run_pictures(
        Request("segment", images, json, save, allow_urls),
        lambda picture: task(
            picture, labels, like=like, model=model, cache=cache, threshold=threshold, tile=tile, allow_urls=allow_urls
        ),
        render.segmentation,
    )


def matte(
    images: Images,
    label: Annotated[str, typer.Option("--label", "-l", metavar="TEXT", help="What to cut out.")],
    over: Annotated[
        str | None,
        typer.Option(metavar="COLOUR|IMAGE", help="What --save lays it on: a colour (red, #fc0) or a picture."),
    ] = None,
    matter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A ViTMatte checkpoint, folder or hub id: edges at a photograph's full size."
        ),
    ] = None,
    model: Model = "tiny",
    json: Json = False,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Write each cut-out as PNG with transparency into DIR.")
    ] = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Cut out what a label names, with soft edges.

    Without --matter the model's own matting head answers. With it the model's segmentation finds the subject, and
    the checkpoint settles its edges.

    \b
    mm matte drawing.png -l "red car" --save out
    mm matte holiday/ -l dog -m clipseg-rd64-refined --matter hustvl/vitmatte-small-composition-1k --save out
    """
    from mm.cli import render
    from mm.cli.backdrop import backdrop
    from mm.cli.run import Request, run_pictures
    from mm.tasks.matte import matte as task

    laid = backdrop(over, allow_urls)
    run_pictures(
        Request("matte", images, json, save, allow_urls),
        lambda picture: task(picture, label, model=model, method="trimap" if matter else "clipmat", matter=matter),
        render.matte,
        lambda result, _: laid(result),
    )


def classify(
    images: Images,
    labels: Labels,
    templates: Annotated[
        str | None,
        typer.Option("--template", metavar="NAME", help="photo, simple, as is, or a sentence with {} for the label."),
    ] = None,
    model: Model = "tiny",
    cache: Cache = None,
    json: Json = False,
    save: Save = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Score each label against the whole picture, best first.

    \b
    mm classify drawing.png -l "a red car" -l "a blue boat"
    mm classify holiday/ -l beach -l city -m siglip2-base-patch16-224 --template simple
    """
    from mm.cli import render
    from mm.cli.run import Request, run_pictures
    from mm.tasks.classify import classify as task

    run_pictures(
        Request("classify", images, json, save, allow_urls),
        lambda picture: task(picture, labels, templates=templates, model=model, cache=cache),
        render.classification,
    )


def embed(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGES", help="Picture files, folders, or URLs (--allow-urls)."),
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", "-t", metavar="TEXT", help="Embed this text; repeatable.")
    ] = None,
    model: Model = "tiny",
    cache: Cache = None,
    json: Json = False,
    allow_urls: AllowUrls = False,
) -> None:
    """Turn pictures or texts into vectors of one space. The whole vectors are in the output of --json.

    \b
    mm embed holiday/ --json > vectors.jsonl
    mm embed --text "a red car" --text "a cat" --json
    """
    from mm.cli import render
    from mm.cli.run import Request, run_pictures, run_texts
    from mm.tasks.embed import embed as task

    if bool(images) == bool(texts):
        raise typer.BadParameter("give either IMAGES or --text, for example: mm embed --text 'a red car'")
    request = Request("embed", images or texts or [], json, None, allow_urls)
    if texts:
        run_texts(request, lambda text: task([text], model=model, kind="text"), render.embeddings)
    else:
        run_pictures(
            request, lambda picture: task([picture], model=model, cache=cache, kind="image"), render.embeddings
        )


def _one_of(labels: list[str] | None, like: str | None) -> None:
    if bool(labels) == bool(like):
        raise typer.BadParameter("give either --label or --like, for example: -l 'red car'")
