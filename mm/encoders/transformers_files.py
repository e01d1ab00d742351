"""What a transformers folder says of its pictures and texts: preprocessing and text rules from its own files.

Nothing is filled in from the defaults of a processor's class, which differ from the released files without a word
(CLIPSeg's class normalises with 0.5, its checkpoint with ImageNet's numbers). The few habits of a class that its
files take for granted stand in `_HABITS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mm.checkpoints.reading import read_json
from mm.encoders.preprocess import Preprocessing
from mm.encoders.text import Canonical, TextRules, TextSpec, fast_rules
from mm.encoders.transformers_weights import refusing
from mm.errors import CheckpointError, MissingExtraError, nearest
from mm.pictures.geometry import Resample
from mm.pictures.padding import squared

_RESAMPLE: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers

# Processor without its ending -> (a bare number as size means a square, not the shortest edge; crops unless told not)
_HABITS: dict[str, tuple[bool, bool]] = {
    "CLIP": (False, True),
    "Bit": (False, True),
    "Llava": (False, True),
    "Siglip": (False, False),
    "Siglip2": (False, False),
    "ViT": (True, False),
    "OwlViT": (True, False),
}
_ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")

_READ = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std", "default_to_square", "patch_size", "max_num_patches",
}  # fmt: skip
# Names of classes, and what the image gate has already done: RGB, channels first.
_IGNORED = {
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "data_format",
    "input_data_format", "return_tensors", "device", "disable_grouping", "model_input_names", "pad_size",
}  # fmt: skip


def read_preprocessing(folder: Path) -> Preprocessing:
    """From `preprocessor_config.json`, or from the image processor inside `processor_config.json`.

    Raises:
        CheckpointError: neither is there, or one says something that this library does not do; the key is named.
    """
    file, said = _processor_file(folder)
    canvas = _processor(said) == "Owlv2"
    if canvas and said.get("do_pad") is not True:
        raise CheckpointError(f"{file}: do_pad={said.get('do_pad')!r} of an Owlv2 processor; expected true")
    square = _processor(said) == "Llava" and said.get("do_pad") is True
    for key, value in said.items():
        off = value is None or (value is False and key.startswith("do_"))
        if key not in _READ | _IGNORED and not off and not ((canvas or square) and key == "do_pad"):
            raise CheckpointError(f"{file}: {key}={value!r} is not understood.{nearest(key, _READ)}")
    mean, std = _normalisation(file, said)
    if said.get("do_resize", True) is not True:
        raise CheckpointError(f"{file}: do_resize={said['do_resize']!r}; expected true, inputs need one size")
    number = _given(file, said, "resample")
    if number not in _RESAMPLE:
        raise CheckpointError(f"{file}: resample={number!r}; expected one of {', '.join(map(str, _RESAMPLE))}")
    resample = _RESAMPLE[number]
    if canvas:
        frame = _sides(file, "size", _given(file, said, "size"))
        return Preprocessing(frame, "canvas", resample, mean, std, None, "floor", (0, 0, 0), None, None)
    if said.get("max_num_patches") is not None:
        patch, most = (_positive(file, key, _given(file, said, key)) for key in ("patch_size", "max_num_patches"))
        side = int(most**0.5) * patch
        return Preprocessing((side, side), "patches", resample, mean, std, None, "floor", (0, 0, 0), patch, most)
    framed = _framed(file, said, resample, mean, std)
    return squared(framed) if square else framed


def _processor_file(folder: Path) -> tuple[str, dict[str, Any]]:
    if (folder / "preprocessor_config.json").is_file():
        return "preprocessor_config.json", read_json(folder / "preprocessor_config.json")
    if (folder / "processor_config.json").is_file():
        nested = read_json(folder / "processor_config.json").get("image_processor")
        if isinstance(nested, dict):
            return "processor_config.json", nested
    raise CheckpointError(
        f"{folder.name}: no preprocessor_config.json, and no processor_config.json with an image_processor; "
        "the size, mean, spread and filter of its pictures stand nowhere else"
    )


def _framed(
    file: str,
    said: dict[str, Any],
    resample: Resample,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Preprocessing:
    """Pictures of one size: squashed, or resized by the shortest edge and cropped."""
    shortest, frame = _size(file, said)
    crop = said.get("do_center_crop")
    if crop is None:
        crop = _habit(file, said, "do_center_crop")[1]
    cropped = _sides(file, "crop_size", _given(file, said, "crop_size")) if crop else None
    if shortest is None:
        if cropped is not None and cropped != frame:
            raise CheckpointError(f"{file}: crop_size {cropped} of a squashed picture of {frame} is not understood")
        return Preprocessing(frame, "squash", resample, mean, std, None, "floor", (0, 0, 0), None, None)
    if cropped is None:
        raise CheckpointError(f"{file}: size by the shortest edge without a crop gives no one input size")
    if max(cropped) > shortest:
        raise CheckpointError(f"{file}: crop_size {cropped} is larger than the shortest edge {shortest}")
    return Preprocessing(cropped, "crop", resample, mean, std, shortest, "floor", (0, 0, 0), None, None)


def _size(file: str, said: dict[str, Any]) -> tuple[int | None, tuple[int, int]]:
    """The shortest edge, or None and both sides."""
    size = _given(file, said, "size")
    if isinstance(size, dict):
        size = {key: value for key, value in size.items() if value is not None}
        if set(size) == {"shortest_edge"}:
            edge = _positive(file, "size", size["shortest_edge"])
            return edge, (edge, edge)
        return None, _sides(file, "size", size)
    if isinstance(size, int):
        square = said.get("default_to_square")
        edge = _positive(file, "size", size)
        return (None if (_habit(file, said, "size")[0] if square is None else square) else edge), (edge, edge)
    return None, _sides(file, "size", size)


def _normalisation(file: str, said: dict[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and spread of pixels in 0..1, whatever the file multiplies its pixels by first."""
    rescale = said.get("do_rescale")
    if rescale is None:
        rescale = said.get("rescale", True)  # the spelling of early OWL-ViT files
    factor = said.get("rescale_factor", 1 / 255) if rescale else 1.0
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not factor > 0:
        raise CheckpointError(f"{file}: rescale_factor={factor!r}; expected a positive number")
    unit = 1 / (255 * factor)
    if said.get("do_normalize", True) is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    else:
        mean, std = _triple(file, said, "image_mean"), _triple(file, said, "image_std")
    if min(std) <= 0:
        raise CheckpointError(f"{file}: image_std={said['image_std']!r}; expected positive numbers")
    scaled = [(m * unit, s * unit) for m, s in zip(mean, std, strict=True)]
    (m0, s0), (m1, s1), (m2, s2) = scaled
    return (m0, m1, m2), (s0, s1, s2)


def _triple(file: str, said: dict[str, Any], key: str) -> tuple[float, ...]:
    value = _given(file, said, key)
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
        raise CheckpointError(f"{file}: {key}={value!r}; expected three numbers")
    return tuple(float(v) for v in values)


def _sides(file: str, key: str, value: Any) -> tuple[int, int]:
    """Height and width from a number, a pair or an object."""
    if isinstance(value, dict):
        value = {name: side for name, side in value.items() if side is not None}
        if set(value) != {"height", "width"}:
            raise CheckpointError(f"{file}: {key} with {sorted(value)} is not understood; expected height and width")
        value = [value["height"], value["width"]]
    pair = [value, value] if isinstance(value, int) else value
    if not isinstance(pair, list) or len(pair) != 2:
        raise CheckpointError(f"{file}: {key}={value!r}; expected a height and a width")
    return _positive(file, key, pair[0]), _positive(file, key, pair[1])


def _positive(file: str, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{file}: {key}={value!r}; expected a positive whole number")
    return value


def _given(file: str, said: dict[str, Any], key: str) -> Any:
    if said.get(key) is None:
        raise CheckpointError(f"{file}: {key} is missing, and no default would be safe")
    return said[key]


def _habit(file: str, said: dict[str, Any], key: str) -> tuple[bool, bool]:
    stem = _processor(said)
    if stem not in _HABITS:
        raise CheckpointError(f"{file}: what {key} means there depends on {stem!r}, which is not known")
    return _HABITS[stem]


def _processor(said: dict[str, Any]) -> str:
    """The processor's name without its ending."""
    name = str(said.get("image_processor_type") or said.get("feature_extractor_type"))
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


@dataclass(frozen=True)
class TextHabits:
    """What a family of checkpoints decides about its texts beside its files.

    pools: the place whose state stands for the text: `last`, the first that holds `end` (the configuration's
    eos_token_id), the `highest` id, or `clip`: `end`, except that the number 2 stands for `highest`.
    mask: what the tower is told of it: `none`, because it read its padding in training; `padding`, and it is causal
    by itself; or `causal`, because transformers' AIMv2 forgets to be where a batch has no padding.
    """

    canonical: Canonical
    fill: bool
    pools: Literal["last", "end", "highest", "clip"]
    mask: Literal["none", "padding", "causal"]


def read_text_rules(folder: Path, habits: TextHabits, config: Any) -> TextRules:
    """The rules of the folder's tokenizer; config: of the text tower.

    Raises:
        CheckpointError: no tokenizer, or its marks are not those at which the tower pools.
        MissingExtraError: only a SentencePiece model is there, and its library is not installed.
    """
    tokenizer = _tokenizer(folder)
    begin, end = _marks(folder.name, tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None:
        if habits.fill or not end:
            raise CheckpointError(f"{folder.name}: the tokenizer has no padding token")
        pad = end[-1]
    if max((*begin, *end, pad)) >= config.vocab_size:
        raise CheckpointError(f"{folder.name}: the tokenizer's marks lie outside the tower's {config.vocab_size} ids")
    _check_end(folder.name, habits.pools, config.eos_token_id, end, tokenizer)
    length = min(config.max_position_embeddings, tokenizer.model_max_length)
    return fast_rules(tokenizer, TextSpec(length, habits.canonical, habits.fill, begin, end, pad))


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with refusing(folder):
        if (folder / "tokenizer.json").is_file():
            # SigLIP's class would want SentencePiece even where the same tokenizer lies beside it in this form.
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if (folder / "spiece.model").is_file():
            return _sentencepiece(folder)
        if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            # transformers would make up a tokenizer of three words here.
            raise CheckpointError(
                f"{folder.name}: no tokenizer; expected tokenizer.json, vocab.json with merges.txt, or spiece.model"
            )
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _sentencepiece(folder: Path) -> Any:
    from importlib.util import find_spec

    for package, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf")):
        if find_spec(module.split(".")[0]) is None or find_spec(module) is None:
            raise MissingExtraError(
                f"{folder.name}: spiece.model needs `pip install {package}`; tokenizer.json does not"
            )
    from transformers import SiglipTokenizer

    return SiglipTokenizer.from_pretrained(folder, local_files_only=True)


def _marks(name: str, tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and behind a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    marked = tokenizer("a", add_special_tokens=True)["input_ids"]
    start = next((i for i in range(len(marked)) if plain and marked[i : i + len(plain)] == plain), None)
    if start is None:
        raise CheckpointError(f"{name}: the tokenizer does not keep a text whole between its marks")
    return tuple(marked[:start]), tuple(marked[start + len(plain) :])


def _check_end(name: str, pools: str, eos: Any, end: tuple[int, ...], tokenizer: Any) -> None:
    """Whether the tower finds the end mark; where it does not, it pools the first place and says nothing."""
    if pools == "last":
        return
    highest = max(tokenizer.get_vocab().values())
    wanted = highest if pools == "highest" or (pools == "clip" and eos == 2) else eos
    if not end or end[0] != wanted:
        raise CheckpointError(
            f"{name}: the text tower pools at id {wanted}, but the tokenizer ends a text with {list(end)}"
        )
