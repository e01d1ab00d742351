"""The recipe of the embedded default: `python -m mm.recipes.tiny --work FOLDER`, or `make weights`.

Six stages; all but the last go on after a kill from their last checkpoint in FOLDER.
`pair` trains the two towers by image-text terms, region-text terms (boxes and masks by label) and captioning.
`heads` freezes them and trains detection head, segmentation head, connector and decoder on.
`names` trains connector and decoder alone, on questions that name one of two things: with more of them, or beside
captions, the decoder does not learn for a long time to look for the thing that is named.
`counts` goes on with how many there are of two or three things, how large they are and where they lie. In both, most
questions come in several wordings: asked in one, the decoder takes the name from its place in the sentence.
`words` trains the two on everything that can be asked about a picture.
`export` writes the folder that the library loads, measures the drawn world's spread, and needs no training; where no
tower was trained, the matting head of the model that all began with comes along.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm.checkpoints.hub import locate
from mm.checkpoints.loading import load
from mm.encoders.base import ImageFeatures
from mm.joined import Joined
from mm.recipes.batches import ATTRIBUTE_SIZES, Batch, make_batch
from mm.recipes.dialogue_batches import DialogueBatch, make_dialogue_batch
from mm.recipes.export import export
from mm.recipes.fit import fit_stage, load_stage
from mm.recipes.losses import (
    attribute_loss,
    contrastive_loss,
    detection_loss,
    mask_loss,
    present_loss,
    region_loss,
)
from mm.recipes.tiny_parts import SPEC, build_decoder, build_encoder, build_heads, dialogue_loss, prepare
from mm.zoo import EMBEDDED

# The sum over 300 labels would drown the rest; what kind a thing is is learned last and matters most.
_PAIR_WEIGHTS = {
    "class": 0.15,
    "object": 0.5,
    "box": 2.0,
    "attribute": 1.5,
    "region": 0.7,
    "contrast": 0.3,
    "present": 0.5,
}
_CAPTIONS = 12  # pictures of a batch that are also told from each other by their whole caption
_HEADS_EVERY = 5  # in stage `heads`: boxes and masks are trained already, the decoder needs most


class PairTraining(nn.Module):
    """The two towers; the heads are their region-text terms, the decoder their captioning term."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.heads = build_encoder(), build_heads()
        self.speaker = build_decoder(self.encoder.rules.tokenizer)
        decoder: Any = self.speaker["decoder"]
        for model in (self.encoder.text, decoder):
            model.set_attn_implementation("eager")  # twice as fast backwards on a CPU, at these lengths
        self.attributes = nn.Linear(SPEC.width, sum(ATTRIBUTE_SIZES))  # of use to this stage alone

    def start_from(self, joined: Joined) -> None:
        """Takes the weights of an exported model, to go on from there."""
        for mine, theirs in (
            (self.encoder, joined.encoder),
            (self.heads["detect"], joined.detector),
            (self.heads["segment"], joined.segmenter),
        ):
            assert isinstance(theirs, nn.Module)
            mine.load_state_dict(theirs.state_dict())
        assert joined.speaker is not None
        self.speaker["connector"].load_state_dict(joined.speaker.connector.state_dict())
        self.speaker["decoder"].load_state_dict(joined.speaker.decoder.lm.state_dict())

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        with autocast(batch.pixels.device):
            pixels = prepare(batch.pixels).contiguous(memory_format=torch.channels_last)
            image = self.encoder.encode_image(pixels, SPEC.layers)
            text = self.encoder.encode_text(batch.texts).pooled.float()
            captions = self.encoder.encode_text(batch.captions[:_CAPTIONS]).pooled
            boxes = self.heads["detect"](image, text)
            masks = self.heads["segment"](image, text[batch.ask_label], batch.ask_owner)
            attributes = self.attributes(image.tokens)
            told = batch.dialogues[batch.step % 2 :: 2]  # counts reach the towers by no other term
            spoken = spoken_loss(self.speaker, self.heads["detect"], self.encoder.rules.tokenizer, image, told)
        scale = self.encoder.logit_scale
        terms = {
            **detection_loss(boxes, batch),
            "attribute": attribute_loss(attributes, batch),
            "region": region_loss(boxes, text, batch),
            "mask": mask_loss(masks, batch.ask_mask),
            "contrast": contrastive_loss(image.pooled, captions, batch.captions[:_CAPTIONS], scale),
            "present": present_loss(image.pooled, text, batch, scale),
            "words": spoken,
        }
        return {name: _PAIR_WEIGHTS.get(name, 1.0) * term for name, term in terms.items()}


class HeadsTraining(nn.Module):
    """Everything that stands on the frozen towers."""

    def __init__(self, pair: PairTraining) -> None:
        super().__init__()
        self.encoder, self.heads, self.speaker = pair.encoder.requires_grad_(False), pair.heads, pair.speaker

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.encoder.eval()
        terms = {}
        with autocast(batch.pixels.device):
            pixels = prepare(batch.pixels).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                image = self.encoder.encode_image(pixels, SPEC.layers)
            if batch.step % _HEADS_EVERY == 0:
                with torch.no_grad():
                    text = self.encoder.encode_text(batch.texts).pooled.float()
                boxes = self.heads["detect"](image, text)
                masks = self.heads["segment"](image, text[batch.ask_label], batch.ask_owner)
                terms = {**detection_loss(boxes, batch), "mask": mask_loss(masks, batch.ask_mask)}
            tokenizer = self.encoder.rules.tokenizer
            spoken = spoken_loss(self.speaker, self.heads["detect"], tokenizer, image, batch.dialogues)
        return {**terms, "words": spoken}


class WordsTraining(nn.Module):
    """The language half over frozen towers and heads."""

    def __init__(self, heads: HeadsTraining) -> None:
        super().__init__()
        self.encoder, self.heads, self.speaker = heads.encoder, heads.heads.requires_grad_(False), heads.speaker

    def losses(self, batch: DialogueBatch) -> dict[str, Tensor]:
        self.encoder.eval()
        with autocast(batch.pixels.device):
            with torch.no_grad():
                pixels = prepare(batch.pixels).contiguous(memory_format=torch.channels_last)
                image = self.encoder.encode_image(pixels)
            tokenizer = self.encoder.rules.tokenizer
            return {"words": spoken_loss(self.speaker, self.heads["detect"], tokenizer, image, batch.dialogues)}


def spoken_loss(speaker: Any, detector: nn.Module, tokenizer: Any, image: ImageFeatures, dialogues: Any) -> Tensor:
    """`dialogue_loss`, where the connector finds things as the detection head does by now."""
    speaker["connector"].find_as(detector)
    return dialogue_loss(speaker, tokenizer, image, dialogues)


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def train(
    folder: Path, *, pair_steps: int, heads_steps: int, names_steps: int, counts_steps: int, words_steps: int,
    batch: int, device: str, init: str | None = None,
) -> WordsTraining:  # fmt: skip
    """Runs the stages that `folder` does not hold complete yet."""
    torch.manual_seed(0)
    start = load(init) if init else None
    pair = PairTraining().to(device).to(memory_format=torch.channels_last).train()
    if start:
        pair.start_from(start)
    make = functools.partial(make_batch, size=batch)
    fit_stage("pair", folder, pair, pair.losses, make=make, steps=pair_steps, peak=1.0e-3)
    heads = HeadsTraining(pair).to(device).train()
    fit_stage("heads", folder, heads, heads.losses, make=make, steps=heads_steps, peak=1.5e-3, shift=10**7)
    words = WordsTraining(heads).to(device).train()
    make = functools.partial(make_dialogue_batch, size=2 * batch, lesson="names")
    fit_stage("names", folder, words, words.losses, make=make, steps=names_steps, peak=3.0e-3, shift=4 * 10**7)
    make = functools.partial(make_dialogue_batch, size=batch, lesson="counts")
    fit_stage("counts", folder, words, words.losses, make=make, steps=counts_steps, peak=3.0e-3, shift=5 * 10**7)
    make = functools.partial(make_dialogue_batch, size=batch)
    fit_stage("words", folder, words, words.losses, make=make, steps=words_steps, peak=2.0e-3, shift=3 * 10**7)
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--pair-steps", type=int, default=4200, help="of --batch scenes each (default %(default)s)")
    parser.add_argument("--heads-steps", type=int, default=3000, help="likewise (default %(default)s)")
    parser.add_argument("--names-steps", type=int, default=700, help="of twice as many (default %(default)s)")
    parser.add_argument("--counts-steps", type=int, default=1500, help="of --batch scenes (default %(default)s)")
    parser.add_argument("--words-steps", type=int, default=6000, help="likewise (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="scenes a step (default %(default)s)")
    parser.add_argument("--init", metavar="MODEL", help="start from a name or an exported folder, not from nothing")
    parser.add_argument("--export-only", action="store_true", help="write the last checkpoint of `words` as it is")
    parser.add_argument(
        "--out", type=Path, default=EMBEDDED / "tiny", help="folder to write (default: the embedded one)"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.export_only:
        trained = WordsTraining(HeadsTraining(PairTraining()))
        load_stage("words", args.work, trained)
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        steps = {"pair_steps": args.pair_steps, "heads_steps": args.heads_steps}
        steps |= {"names_steps": args.names_steps, "counts_steps": args.counts_steps, "words_steps": args.words_steps}
        trained = train(args.work, **steps, batch=args.batch, device=device, init=args.init)
    start = locate(args.init).folder if args.init and not args.pair_steps else None
    export(trained.cpu().eval(), args.out, matting_of=start)


if __name__ == "__main__":
    main()
