"""The command that trains a head, or a connector, on your own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mm.errors import MMError
from mm.results.lettering import visible


def fit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Whose encoder: a name, a hub id, or a folder.")],
    data: Annotated[
        str, typer.Option("--data", metavar="DATA", help="A folder in COCO's layout, its JSON file, or scenes[:COUNT].")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the run and the model are written.")],
    head: Annotated[str | None, typer.Option("--head", metavar="HEAD", help="detect, segment or matte.")] = None,
    stage: Annotated[
        str, typer.Option(metavar="STAGE", help="head, or align: the connector of a model that mm.join made.")
    ] = "head",
    steps: Annotated[int, typer.Option(min=1, help="How long to train.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in a step.")] = 8,
    rate: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-3,
    encoder: Annotated[str, typer.Option(metavar="WORD", help="frozen, or trained along.")] = "frozen",
    fresh: Annotated[bool, typer.Option("--fresh", help="A new head, even where MODEL has one.")] = False,
    validation: Annotated[
        str | None,
        typer.Option(metavar="SHARE|DATA", help="What to measure on: a share of the data such as 0.1, or other data."),
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Mirror half of the pictures.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision, for recent GPUs and processors.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn by chance.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare batches.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 250,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1 or mps.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Go on though settings or data have changed.")] = False,
) -> None:
    """Train a head, or a connector, on your own pictures.

    The head finds boxes (detect), masks (segment) or soft masks (matte) of what you name. It stands on the encoder
    of MODEL, which stays as it is unless you say --encoder trained. A head that MODEL has is trained on.

    DATA is a folder with one JSON file of instances in COCO's layout and the pictures in images/, or `scenes`, the
    drawings that the library makes itself. A picture that cannot be read is left out and named.

    FOLDER holds the run in fit/ (checkpoint.safetensors and log.jsonl) and, at the end, the model. After Ctrl-C, a
    kill or a full disk the same command goes on where it was; with other settings or data it refuses, unless --force.

    With --stage align MODEL is a folder that `save_joined` wrote, and its connector is trained. DATA is then a JSON
    file in LLaVA's layout, or `scenes`; the run lies beside FOLDER.

    \b
    mm fit tiny --data scenes:2000 --head detect --fresh --out boxes --steps 500 --validation scenes:50
    mm fit clip-vit-base-patch16 --data birds/ --head detect --out birds-model --validation 0.1 --flips
    mm detect garden.jpg -l robin --model ./birds-model
    """
    from mm.training.fit import fit as train

    words: dict[str, Any] = {
        "stage": stage,
        "head": head,
        "encoder": encoder,
        "fresh": fresh,
        "device": device,
        "force": force,
    }
    words |= {"steps": steps, "batch": batch, "rate": rate, "flips": flips, "bf16": bf16, "seed": seed}
    words |= {"workers": workers, "save_every": save_every, "validation": _share(validation)}
    try:
        made = train(model, data, out=out, **words)
    except KeyboardInterrupt as stopped:
        typer.echo(f"interrupted: {stopped or 'at once'}; the same command goes on", err=True)
        raise typer.Exit(130) from None
    except (MMError, FloatingPointError) as error:
        typer.echo(f"error: {visible(str(error))}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{out}\t{made.name}, sha256 {made.sha256[:12]}")


def _share(text: str | None) -> float | str | None:
    """A number is a share of the data, anything else data of its own."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text
