"""Joins an image encoder to a language model: says what fits and what has to be trained, then reads weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from mm.checkpoints.hub import locate
from mm.checkpoints.loading import load
from mm.checkpoints.reading import load_into, load_tensors
from mm.checkpoints.saved import Parts, decoder_home, save, weights_of
from mm.connectors import keys
from mm.connectors.base import Connector, Grid
from mm.connectors.regions import Regions
from mm.connectors.table import build
from mm.decoders.folder import chat_template, load_decoder, prompts_for
from mm.encoders.build import Dtype, licence_of
from mm.errors import InputError
from mm.heads.owlvit import OwlHead
from mm.joined import Joined
from mm.outline import DecoderOutline, EncoderOutline, decoder_outline, encoder_outline
from mm.vlm import Speaker, View, seen

Feature = Literal["patches", "all"]
Name = str | os.PathLike[str]

_QUESTION = "Describe the picture."
_LEAST_WORDS = 16  # tokens for a question and an answer, below which a pair is of no use
_PUBLISHED = {
    "linear": keys.llava_linear,
    "mlp": keys.llava,
    "mlp2x_gelu": keys.llava,
    "perceiver": keys.idefics2,
    "q-former": keys.blip2,
    "pixel-shuffle": keys.idefics3,
    "internvl": keys.internvl,
    "c-abstractor": keys.honeybee,
    "ldp": keys.mobilevlm,
    "ldpv2": keys.mobilevlm_v2,
}


@dataclass(frozen=True)
class Plan:
    """A join before any weight is read. `print(plan)` shows it, `plan.build()` carries it out.

    layers: of the encoder, which the connector reads side by side; none for its last tokens. grid: of what the
    connector reads. out: how many tokens a picture is for the decoder. parameters: of the connector.
    weights: the file of the connector's weights, None for fresh ones.
    """

    encoder: str
    tower: EncoderOutline
    layers: tuple[int, ...]
    grid: Grid
    width: int
    connector: str
    settings: dict[str, Any]
    out: int
    parameters: int
    decoder: str
    language: DecoderOutline
    weights: Path | None = None
    pad: str | None = None
    dtype: Dtype = "float32"
    seed: int = 0
    loaded: Joined | None = field(default=None, repr=False)

    @property
    def context_left(self) -> int:
        """Tokens for words beside one picture."""
        return self.language.context - self.out

    @property
    def fresh(self) -> tuple[str, ...]:
        """What has random weights, until `mm.fit(model, data, stage="align")` trains it."""
        return () if self.weights else ("connector",)

    def __str__(self) -> str:
        (height, side), tower, language = self.tower.input_hw, self.tower, self.language
        where = f"blocks {', '.join(map(str, self.layers))}" if self.layers else "last tokens"
        settings = "".join(f", {key}={value}" for key, value in self.settings.items())
        bound = language.context != sys.maxsize
        left = f"{self.context_left:,} of {language.context:,} tokens left" if bound else "no bound, nothing taken"
        chat = "its own chat template" if language.chat else "no chat template: asked as a base model"
        size = f"{language.layers} layers, {language.parameters:,} parameters"
        train = 'connector, with mm.fit(model, data, stage="align")' if self.fresh else "nothing has to be"
        rows = {
            "encoder": f"{self.encoder} ({tower.kind}), {height} x {side} pixels",
            "tokens": f"{self.grid[0] * self.grid[1]} ({self.grid[0]} x {self.grid[1]}) of width {self.width}, {where}",
            "connector": f"{self.connector}{settings}: {self.out} tokens of width {language.width}, "
            f"{self.parameters:,} parameters",
            "decoder": f"{self.decoder} ({language.kind}), {size}; {chat}",
            "context": f"{left} for words beside a picture",
            "pretrained": ", ".join(["encoder", *(["connector"] if self.weights else []), "decoder"]),
            "to train": train,
        }
        return "\n".join(f"{name:<11}{value}" for name, value in rows.items())

    def build(self) -> Joined:
        """Reads the weights and joins them. The connector's random weights depend on `seed` alone."""
        base = self.loaded or load(self.encoder, dtype=self.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            connector = _connector(self.connector, self.width, self.language.width, self.grid, self.settings)
        if isinstance(connector, Regions):
            connector.find_as(_detector(base, self.layers))
        if self.weights:
            load_into(connector, _published(self.connector, self.weights), self.weights.name)
        home = decoder_home(locate(self.decoder).folder)
        decoder = load_decoder(home, dtype=self.dtype)
        connector = connector.to(next(decoder.lm.parameters()).dtype).eval().requires_grad_(False)
        prompts = prompts_for(decoder.tokenizer, chat_template(home, decoder.tokenizer))
        speaker = Speaker(connector, decoder, _QUESTION, prompts, View(self.layers), _notes(self))
        licences = dict.fromkeys((base.licence, licence_of(locate(self.decoder).folder)))
        return replace(
            base, name=f"{base.name}+{self.connector}+{home.name}", revision="local",
            sha256=_both(base.sha256, weights_of(home)), licence=" and ".join(licences),
            encoder=seen(base.encoder, self.layers, self.pad), speaker=speaker, world=None,
            detector=None, segmenter=None, matter=None, plan=self,
        )  # fmt: skip


def plan(
    *,
    encoder: Name | Joined,
    decoder: Name,
    connector: str = "mlp",
    layer: int | Sequence[int] | None = None,
    weights: Name | None = None,
    pad: Literal["square"] | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    **settings: Any,
) -> Plan:
    """What `join` would do with the same arguments; no weight is read.

    Raises:
        InputError: the parts cannot be joined, and why.
    """
    if pad not in (None, "square"):
        raise InputError(f'pad: expected "square" or None, got {pad!r}')
    if dtype not in get_args(Dtype):
        raise InputError(f"dtype: expected one of {', '.join(get_args(Dtype))}, got {dtype!r}")
    layers = () if layer is None else (layer,) if isinstance(layer, int) else tuple(layer)
    name = encoder.name if isinstance(encoder, Joined) else os.fspath(encoder)
    tower = encoder_outline(locate(name).folder, layers)
    grid, width = _read_by_connector(tower, layers)
    language = decoder_outline(decoder_home(locate(decoder).folder))
    with torch.device("meta"):
        made = _connector(connector, width, language.width, grid, settings)
    out = made.tokens(grid)
    if language.context - out < _LEAST_WORDS:
        raise InputError(
            f"a picture is {out} tokens behind this connector and the decoder reads {language.context}, which leaves "
            "no room for words; take a connector that pools, or a smaller input"
        )
    file = None if weights is None else Path(weights)
    if file is not None and (file.suffix != ".safetensors" or not file.is_file()):
        raise InputError(f"weights: expected a safetensors file, got {file.name!r}")
    return Plan(
        encoder=name, tower=tower, layers=layers, grid=grid, width=width, connector=connector, settings=settings,
        out=out, parameters=sum(p.numel() for p in made.parameters()), decoder=os.fspath(decoder), language=language,
        weights=file, pad=pad, dtype=dtype, seed=seed, loaded=encoder if isinstance(encoder, Joined) else None,
    )  # fmt: skip


def join(
    *,
    encoder: Name | Joined,
    decoder: Name,
    connector: str = "mlp",
    layer: int | Sequence[int] | None = None,
    weights: Name | None = None,
    pad: Literal["square"] | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    build: bool = True,
    **settings: Any,
) -> Any:
    """One model out of an image encoder, a connector and a language model; `model.plan` says what it is made of.

    encoder: a name (`mm.checkpoints.names`), a folder, or what `mm.load` gave. decoder: a hub id or folder of any
    causal language model of transformers, or `tiny`. connector: a name of `mm.connectors.table`, with its settings
    (`out=64`).
    layer: the block whose tokens the connector reads, -2 for the last but one, or several, side by side in the
    channels; None for the tower's last tokens, after its last norm.
    weights: published weights of the connector, a safetensors file; otherwise they are random, by `seed`, and have to
    be trained: `mm.fit(model, data, stage="align")`.
    pad: `square` pads pictures with the mean colour.
    build: False gives the `Plan` alone, and reads no weight.

    Raises:
        InputError: the parts cannot be joined. CheckpointError: no such part, or its files are damaged.
    """
    planned = plan(
        encoder=encoder, decoder=decoder, connector=connector, layer=layer, weights=weights, pad=pad, dtype=dtype,
        seed=seed, **settings,
    )  # fmt: skip
    return planned.build() if build else planned


def save_joined(joined: Joined, folder: Name, *, parts: Parts = "inside") -> None:
    """Writes what `join` made, trained or not, as a folder that `mm.load` reads; whole or not at all.

    parts: `inside` copies encoder and decoder into the folder. `by name` keeps their names and the sha256 of their
    weights, for parts that were not trained.

    Raises:
        InputError: the model was not made by `join`, or there is something at `folder` already.
    """
    planned, speaker = joined.plan, joined.speaker
    if parts not in get_args(Parts):
        raise InputError(f"parts: expected one of {', '.join(get_args(Parts))}, got {parts!r}")
    if planned is None or speaker is None:
        raise InputError(f"model {joined.name!r} was not made by mm.join, so there is nothing new to save")
    config = {
        "name": Path(folder).name,
        "revision": "1",
        "licence": joined.licence,
        "encoder": {"blocks": list(planned.layers), "pad": planned.pad},
        "speaker": {
            "connector": planned.connector, "settings": planned.settings, "grid": list(planned.grid),
            "d_in": planned.width, "d_out": planned.language.width, "prompt": speaker.prompt,
            "style": speaker.prompts.style, "blocks": list(speaker.view.layers), "skip": speaker.view.skip,
            "notes": list(speaker.notes),
        },
    }  # fmt: skip
    tensors = {f"connector.{key}": value for key, value in speaker.connector.state_dict().items()}
    home = locate(planned.encoder).folder
    save(Path(folder), encoder=home, decoder=speaker.decoder, config=config, tensors=tensors, parts=parts,
         names=(planned.encoder, planned.decoder))  # fmt: skip


def _read_by_connector(tower: EncoderOutline, layers: tuple[int, ...]) -> tuple[Grid, int]:
    if not layers:
        return tower.grid, tower.width
    grids = {tower.layers[layer][0] for layer in layers}
    if len(grids) > 1:
        listed = ", ".join(f"{h} x {w}" for h, w in sorted(grids))
        raise InputError(f"layer: blocks {layers} have grids of {listed}; only those of one grid lie side by side")
    return grids.pop(), sum(tower.layers[layer][1] for layer in layers)


def _connector(name: str, d_in: int, d_out: int, grid: Grid, settings: dict[str, Any]) -> Connector:
    try:
        made = build(name, d_in, d_out, grid, **settings)
        made.tokens(grid)
    except (ValueError, TypeError) as error:
        raise InputError(f"connector: {error}") from None
    return made


def _detector(base: Joined, layers: tuple[int, ...]) -> OwlHead:
    """The head by which `regions` finds things, on the tokens that the connector reads."""
    head = base.detector
    if layers or not isinstance(head, OwlHead) or head.objectness_head is None or head.merge_class_token:
        raise InputError(
            "connector: 'regions' finds things as a detection head on the encoder's last tokens does, and "
            f"{base.name!r} has none that fits; train one (mm.fit, head='detect') and join the folder that it wrote"
        )
    return head


def _published(name: str, file: Path) -> dict[str, torch.Tensor]:
    """Weights by our own names, or by those of whoever published them."""
    tensors = load_tensors(file)
    own = {key.removeprefix("connector."): value for key, value in tensors.items()}
    if name not in _PUBLISHED or all(key.startswith("connector.") for key in tensors):
        return own
    try:
        return _PUBLISHED[name](tensors)
    except ValueError as error:
        raise InputError(f"weights: {error}") from None


def _notes(planned: Plan) -> tuple[str, ...]:
    if not planned.fresh:
        return ()
    return ("the connector has random weights: train it before you believe a word, mm.fit(…, stage='align')",)


def _both(first: str, second: str) -> str:
    import hashlib

    return hashlib.sha256(f"{first} {second}".encode()).hexdigest()
