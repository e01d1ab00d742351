"""A joined model as a folder that transformers' `LlavaForConditionalGeneration` and `AutoProcessor` load.

Before anything is written it is settled that the format can say all of it; before the folder appears under its name
the reference has loaded it and given the same logits and the same greedy tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mm.checkpoints.llava import Projector
from mm.checkpoints.saved import write_folder
from mm.connectors.projections import MLP
from mm.decoders.folder import load_tokenizer
from mm.decoders.int8 import check_whole
from mm.encoded import Encoded, encode_pictures
from mm.encoders.transformers_weights import quiet
from mm.errors import CheckpointError, InputError
from mm.generation.loop import generate
from mm.generation.prompts import PictureFirst, Plain, Prompt, Templated, asked
from mm.images import open_image
from mm.joined import Joined
from mm.pictures.padding import SquarePreprocessing
from mm.quick import QuickLinear
from mm.vlm import Speaker

IMAGE = "<image>"
Strategy = Literal["full", "default"]

_DECODERS = ("llama", "mistral", "qwen2", "qwen3", "mixtral")  # whose head is one matrix and nothing else
_TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers", "aimv2_vision_model")
_NUMBERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's, of its filters
_ALLOWED = 1e-3  # of the largest logit
_TOKENS = 16
_QUESTIONS = ("Describe the picture.", "How many things are there, and what colour is the largest?", "<image></s>?")

# Lists of contents become the texts for which a decoder's own template was made: pictures a line of their own.
_FLATTEN = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set flat.messages = flat.messages + [message] -%}{%- else -%}"
    "{%- set pieces = namespace(all=[]) -%}{%- for piece in message['content'] -%}"
    "{%- set pieces.all = pieces.all + ['<image>' if piece['type'] == 'image' else piece['text']] -%}{%- endfor -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=pieces.all | join('\n'))] -%}"
    "{%- endif -%}{%- endfor -%}{%- set messages = flat.messages -%}"
)
_PLAIN = (
    "{%- for message in messages -%}{{ message['content'] }}"
    "{{ '\n' if message['role'] == 'user' else '\n\n' }}{%- endfor -%}"
)


@dataclass(frozen=True)
class Receipt:
    """What the reference gave for the written folder, over a battery of prompts.

    logits: the largest difference; largest: the largest logit. same_tokens: of all greedy tokens, the part that is
    equal. pixels: by how much the reference prepares pictures otherwise, the largest difference of normalised pixels
    (its resizing rounds at other places).
    """

    format: str
    prompts: int
    logits: float
    largest: float
    same_tokens: float
    pixels: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_llava(joined: Joined, folder: Path) -> Receipt:
    """Writes the folder, whole or not at all.

    Raises:
        InputError: the format cannot say what this model does, and why; nothing is written.
        CheckpointError: the reference gives other numbers for what would be written; nothing stays.
    """
    speaker = _speaker(joined)
    tower = _tower(joined.encoder)
    layers, strategy = _features(speaker, tower)
    projector = _projector(speaker.connector)
    _check_decoder(speaker)
    _image_processor(joined)
    receipts: list[Receipt] = []

    def fill(target: Path) -> None:
        with quiet():
            tokenizer, template = _worded(speaker, target)
            model = _model(speaker, tower, projector, layers, strategy, tokenizer.convert_tokens_to_ids(IMAGE))
            target.mkdir(exist_ok=True)
            model.save_pretrained(target)
            processor = _processor(joined, tower, tokenizer, template, strategy)
            processor.save_pretrained(target)
            processor.image_processor.save_pretrained(target)
            receipts.append(_compared(joined, speaker, target))

    write_folder(folder, fill)
    return receipts[0]


def _refused(reason: str) -> InputError:
    return InputError(f"llava-hf cannot hold this model: {reason}")


def _speaker(joined: Joined) -> Speaker:
    found = joined.need("speaker")
    assert isinstance(found, Speaker)
    if isinstance(found.prompts, PictureFirst):
        raise _refused("its pictures stand in front of the first mark, where the format has no place for them")
    return found


def _tower(encoder: Any) -> Any:
    """The tower of transformers inside an encoder."""
    pair = getattr(encoder, "model", None)
    found = getattr(encoder, "tower", None) or getattr(pair, "vision_model", None)
    kind = getattr(getattr(found, "config", None), "model_type", type(encoder).__name__)
    if kind not in _TOWERS:
        raise _refused(f"its image tower is {kind}; expected one of {', '.join(_TOWERS)}")
    return found


def _features(speaker: Speaker, tower: Any) -> tuple[int | list[int], Strategy]:
    """vision_feature_layer and vision_feature_select_strategy."""
    from mm.encoders.transformers_tower import prefix_tokens

    view, prefix = speaker.view, prefix_tokens(tower)
    if not view.layers:
        raise _refused("its connector reads tokens after the tower's last norm, the format those of blocks; layer=-1")
    skip = prefix if view.skip is None else view.skip
    if skip > 1:
        raise _refused(f"its connector leaves out {skip} tokens of the tower, the format one or none")
    layers = [layer if layer < 0 else layer + 1 for layer in view.layers]
    return layers[0] if len(layers) == 1 else layers, "default" if skip else "full"


def _projector(connector: nn.Module) -> Projector:
    if isinstance(connector, Projector):
        return connector
    if not isinstance(connector, MLP) or connector.depth != 2:
        raise _refused(f"its connector is {type(connector).__name__}; expected an MLP of two matrices")
    like = next(connector.parameters())
    made = Projector(connector.d_in, connector.d_out).to(like.device, like.dtype)
    made.load_state_dict(connector.state_dict())
    return made.eval().requires_grad_(False)


def _check_decoder(speaker: Speaker) -> None:
    lm = speaker.decoder.lm
    check_whole(lm)
    kind = lm.config.model_type
    if kind not in _DECODERS:
        raise _refused(f"its decoder is {kind}; expected one of {', '.join(_DECODERS)}")
    if type(lm.lm_head) not in (nn.Linear, QuickLinear) or lm.lm_head.bias is not None:
        raise _refused("its decoder's head is not one matrix")


def _image_processor(joined: Joined) -> Any:
    """The reference's class for this preprocessing."""
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    said = joined.spec.preprocessing
    height, width = said.input_hw
    same: dict[str, Any] = {
        "image_mean": list(said.mean),
        "image_std": list(said.std),
        "resample": _NUMBERS[said.resample],
    }
    frame = {"height": height, "width": width}
    padded = isinstance(said, SquarePreprocessing)
    if said.policy == "squash" and not padded:
        return SiglipImageProcessorPil(size=frame, **same)
    if said.policy == "squash" and height == width:  # of a square, the shortest edge is both
        return LlavaImageProcessorPil(size={"shortest_edge": height}, crop_size=frame, do_pad=True, **same)
    if said.policy != "crop" or said.centre != "floor":
        raise _refused(
            f"its pictures are laid into the frame by {said.policy!r} ({said.centre}); expected squash or crop"
        )
    size = {"shortest_edge": said.shortest_edge or min(height, width)}
    if padded:
        return LlavaImageProcessorPil(size=size, crop_size=frame, do_pad=True, **same)
    return CLIPImageProcessorPil(size=size, crop_size=frame, **same)


def _worded(speaker: Speaker, target: Path) -> tuple[Any, str | None]:
    """A copy of the tokenizer that knows the picture's mark, and a template that takes pictures."""
    speaker.decoder.tokenizer.save_pretrained(target)
    tokenizer = load_tokenizer(target)
    prompts = speaker.prompts
    if isinstance(prompts, Templated) and prompts.takes_pictures and prompts.image_token == IMAGE:
        return tokenizer, prompts.template
    if isinstance(prompts, Templated) and prompts.image_token is not None:
        raise _refused(f"its template spells pictures {prompts.image_token!r}, expected {IMAGE!r}")
    if IMAGE not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    own = _PLAIN if isinstance(prompts, Plain) else prompts.template  # type: ignore[attr-defined]
    if not isinstance(prompts, Plain) and not prompts.begin:  # type: ignore[attr-defined]
        tokenizer = _without_beginning(tokenizer)
    return tokenizer, _FLATTEN + own


def _without_beginning(tokenizer: Any) -> Any:
    """The processor lets the tokenizer add its own marks to a rendered template, which has them already."""
    from tokenizers import processors

    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return tokenizer


def _model(
    speaker: Speaker, tower: Any, projector: Projector, layers: int | list[int], strategy: Strategy, image_token: int
) -> Any:
    """The reference's model around the very same modules; the language model grows by the picture's mark."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    lm = speaker.decoder.lm
    text = copy.deepcopy(lm.config)
    body, head = lm.base_model, lm.lm_head
    rows = lm.get_input_embeddings().weight.shape[0]
    grown = image_token >= rows
    if grown:
        body, head = _grown(lm, image_token + 1)
        text.vocab_size = image_token + 1
    config = LlavaConfig(
        vision_config=copy.deepcopy(tower.config), text_config=text, image_token_index=image_token,
        vision_feature_layer=layers, vision_feature_select_strategy=strategy,
        projector_hidden_act=projector.activation, multimodal_projector_bias=projector.bias,
        tie_word_embeddings=bool(lm.config.tie_word_embeddings),
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    model.model.vision_tower, model.model.multi_modal_projector = tower, nn.Module()
    for name in ("linear_1", "linear_2"):
        setattr(model.model.multi_modal_projector, name, getattr(projector, name))
    model.model.language_model, model.lm_head = body, head
    config.dtype = next(lm.parameters()).dtype
    model.generation_config = copy.deepcopy(lm.generation_config)
    if grown:  # the new row of the head is no word that could be written
        model.generation_config.suppress_tokens = [image_token]
    return model


def _grown(lm: Any, rows: int) -> tuple[Any, nn.Linear]:
    """Body and head with more rows, the mean of the old ones; the model itself is left as it was."""

    def longer(weight: Tensor) -> Tensor:
        mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
        return torch.cat([weight, mean.expand(rows - len(weight), -1)])

    body = copy.copy(lm.base_model)
    body._modules = dict(body._modules)
    table = lm.get_input_embeddings()
    made = nn.Embedding(rows, table.weight.shape[1], _weight=longer(table.weight.data))
    body.set_input_embeddings(made)
    head = nn.Linear(table.weight.shape[1], rows, bias=False, device="meta")
    tied = lm.config.tie_word_embeddings
    head.weight = made.weight if tied else nn.Parameter(longer(lm.lm_head.weight.data), requires_grad=False)
    return body, head


def _processor(joined: Joined, tower: Any, tokenizer: Any, template: str | None, strategy: Strategy) -> Any:
    from transformers import LlavaProcessor

    from mm.encoders.transformers_tower import prefix_tokens

    return LlavaProcessor(
        _image_processor(joined), tokenizer, patch_size=tower.config.patch_size,
        vision_feature_select_strategy=strategy, num_additional_image_tokens=prefix_tokens(tower),
        chat_template=template, image_token=IMAGE,
    )  # fmt: skip


# The receipt.


def _battery() -> list[np.ndarray]:
    """uint8[H, W, 3] of odd shapes: noise, a ramp, stripes."""
    chance = np.random.default_rng(0)
    noise = chance.integers(0, 256, (67, 41, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, 53 * 97 * 3).reshape(53, 97, 3).astype(np.uint8)
    stripes = np.where(np.arange(90)[:, None, None] // 7 % 2, 230, 20) * np.ones((90, 90, 3))
    return [noise, ramp, stripes.astype(np.uint8)]


@torch.inference_mode()
def _compared(joined: Joined, speaker: Speaker, folder: Path) -> Receipt:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    at = next(speaker.decoder.lm.parameters())
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=at.dtype, local_files_only=True)
    model.to(at.device).eval()
    reader: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    pictures = [open_image(array) for array in _battery()]
    worst = largest = pixels = 0.0
    same = total = 0
    for picture, encoded, question in zip(pictures, encode_pictures(joined, pictures), _QUESTIONS, strict=True):
        prompt = speaker.prompts(asked(question))
        seen = joined.pixels(picture)[None].to(at.device, at.dtype)
        theirs = reader.image_processor(picture.pixels, return_tensors="pt")["pixel_values"]
        pixels = max(pixels, float((theirs.to(seen) - seen).abs().max()))
        count = speaker.connected(encoded.features).shape[1]
        ids = _their_ids(reader, model, prompt, question, count)
        logits = model(input_ids=ids, pixel_values=seen).logits[0].float()
        ours = speaker.logits(prompt, [encoded.features])
        worst = max(worst, float((logits[:, : ours.shape[1]] - ours).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        written = model.generate(input_ids=ids, pixel_values=seen, max_new_tokens=_TOKENS, do_sample=False)
        agreed, made = _agreement(speaker, prompt, encoded, written[0, ids.shape[1] :].tolist())
        same, total = same + agreed, total + made
    receipt = Receipt("llava-hf", len(pictures), worst, largest, same / max(total, 1), pixels)
    if worst > _ALLOWED * max(largest, 1.0) or same != total:
        raise CheckpointError(f"the reference gives other numbers for what was written, so nothing is kept: {receipt}")
    return receipt


def _their_ids(reader: Any, model: Any, prompt: Prompt, question: str, count: int) -> Tensor:
    """The reference's numbers of this prompt, int64[1, T]; those of a hostile question are ours with placeholders."""
    token = model.config.image_token_id
    ours = [number for part in prompt.parts[:-1] for number in (*part, *[token] * count)] + [*prompt.parts[-1]]
    if "<" not in question:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = reader.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        picture = np.zeros((8, 8, 3), np.uint8)
        theirs = reader(images=picture, text=text, return_tensors="pt")["input_ids"][0].tolist()
        if theirs != ours:
            raise CheckpointError("the reference reads another prompt out of what was written, so nothing is kept")
    return torch.tensor([ours], device=model.device)


def _agreement(speaker: Speaker, prompt: Prompt, encoded: Encoded, theirs: Sequence[int]) -> tuple[int, int]:
    """How many greedy tokens are equal, of how many."""
    prefix, ids = speaker.read(prompt, [encoded])
    *_, (row,) = generate(speaker.decoder, prefix, ids, max_new_tokens=_TOKENS)
    ends = speaker.decoder.ends
    written = [number for number in theirs if number not in ends]
    pairs = zip_longest(row.ids, written)  # a token that only one of them wrote differs
    return sum(a == b for a, b in pairs), max(len(row.ids), len(written))
