"""What the library knows of models by name. Reading this table imports nothing heavy.

The embedded default comes first; behind it stand published checkpoints, which `mm.checkpoints.hub` fetches where the
caller asks for one. Parameters were counted by building each architecture without weights.

Licences: timm 1.0's metadata for SigLIP, MetaCLIP, MobileCLIP and DINOv2, the projects' own repositories for CLIP
(openai/CLIP), LAION's models, TinyCLIP (microsoft/Cream) and OWL-ViT (google-research/scenic). "see model card"
stands where those do not settle it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mm.checkpoints.families import FAMILIES
from mm.errors import CheckpointError, nearest

_OPEN_CLIP = "open_clip docs/openclip_results.csv"
_META = "MetaCLIP README"
_TINYCLIP = "TinyCLIP README"
_APPLE = "Apple's MobileCLIP README"
_SIGLIP2 = "SigLIP 2 (arXiv 2502.14786), table 1"

_PAIR = ("classify", "embed")
_TOWER = ("encode",)
_DETECT = ("detect",)
_SEGMENT = ("segment",)
_SAY = ("caption", "ask", "generate")
_AMLR, _NC = "apple-amlr", "CC-BY-NC-4.0"
_RESEARCH_ONLY = (_AMLR, _NC)
_ASK_THE_CARD = "see model card"
# Families that write, and the file below tests/ that compares each with its reference library.
SPEAKING_FAMILIES = {"llava": "parity/test_llava_parity.py"}


@dataclass(frozen=True)
class Entry:
    """One model.

    reference: where the weights lie, `hf:org/name` or `open_clip:NAME/TAG`; "" for an embedded one. family: of
    `mm.checkpoints.families`. parameters: in millions, of everything. stored: bytes of one in the published file.
    input: pixels. embedding: width of the joint embedding, of the pooled feature where there is no text tower, of a
    language model's tokens. world: what its training pictures were. top1: published zero-shot top-1 on ImageNet-1k in
    percent, and its source; None where nobody published one.
    """

    name: str
    tasks: tuple[str, ...]
    architecture: str
    parameters: float
    input: str
    embedding: int
    licence: str
    reference: str = ""
    family: str = ""
    top1: float | None = None
    top1_source: str = ""
    world: str = "photographs of the web"
    note: str = ""
    stored: int = 4

    @property
    def research_only(self) -> bool:
        """Whether the licence keeps commercial use out."""
        return self.licence in _RESEARCH_ONLY

    @property
    def checked(self) -> bool:
        """Whether a test compares this family with its reference library, output for output."""
        encoder = self.family in FAMILIES and FAMILIES[self.family].parity != ""
        return encoder or self.family in SPEAKING_FAMILIES


TINY = Entry(
    name="tiny",
    tasks=("caption", "ask", "detect", "segment", "matte", "classify", "embed"),
    architecture="CoAtNet + CLIP text tower, OWL, CLIPSeg- and CLIPMat-style heads, regions into a 4-layer Llama",
    parameters=7.9,
    input="128x128",
    embedding=256,
    licence="Apache-2.0",
    family="tiny",
    world="drawn scenes (mm.scenes)",
    note="embedded; trained by this project on drawings, not on photographs",
)


# name, reference, architecture, parameters, side, embedding, licence, top-1, its source
_CLIP_LIKE = (
    ("clip-vit-base-patch32", "ViT-B-32/openai", "ViT-B/32", 151.3, 224, 512, "MIT", 63.32, _OPEN_CLIP),
    ("clip-vit-base-patch16", "ViT-B-16/openai", "ViT-B/16", 149.6, 224, 512, "MIT", 68.34, _OPEN_CLIP),
    ("clip-vit-large-patch14", "ViT-L-14/openai", "ViT-L/14", 427.6, 224, 768, "MIT", 75.54, _OPEN_CLIP),
    ("clip-vit-large-patch14-336", "ViT-L-14-336/openai", "ViT-L/14", 427.9, 336, 768, "MIT", 76.56, _OPEN_CLIP),
    ("clip-vit-b-32-laion2b", "ViT-B-32/laion2b_s34b_b79k", "ViT-B/32", 151.3, 224, 512, "MIT", 66.56, _OPEN_CLIP),
    ("clip-vit-b-16-laion2b", "ViT-B-16/laion2b_s34b_b88k", "ViT-B/16", 149.6, 224, 512, "MIT", 70.23, _OPEN_CLIP),
    ("clip-vit-l-14-laion2b", "ViT-L-14/laion2b_s32b_b82k", "ViT-L/14", 427.6, 224, 768, "MIT", 75.25, _OPEN_CLIP),
    ("clip-vit-h-14-laion2b", "ViT-H-14/laion2b_s32b_b79k", "ViT-H/14", 986.1, 224, 1024, "MIT", 77.96, _OPEN_CLIP),
    ("clip-vit-b-32-datacomp", "ViT-B-32/datacomp_xl_s13b_b90k", "ViT-B/32", 151.3, 224, 512, "MIT", 69.17, _OPEN_CLIP),
    ("clip-vit-b-16-datacomp", "ViT-B-16/datacomp_xl_s13b_b90k", "ViT-B/16", 149.6, 224, 512, "MIT", 73.49, _OPEN_CLIP),
    ("clip-vit-l-14-datacomp", "ViT-L-14/datacomp_xl_s13b_b90k", "ViT-L/14", 427.6, 224, 768, "MIT", 79.21, _OPEN_CLIP),
    ("metaclip-b32-400m", "ViT-B-32-quickgelu/metaclip_400m", "ViT-B/32", 151.3, 224, 512, _NC, 65.5, _META),
    ("metaclip-b16-400m", "ViT-B-16-quickgelu/metaclip_400m", "ViT-B/16", 149.6, 224, 512, _NC, 70.8, _META),
    ("metaclip-l14-400m", "ViT-L-14-quickgelu/metaclip_400m", "ViT-L/14", 427.6, 224, 768, _NC, 76.2, _META),
    ("metaclip-b32-fullcc2.5b", "ViT-B-32-quickgelu/metaclip_fullcc", "ViT-B/32", 151.3, 224, 512, _NC, 67.6, _META),
    ("metaclip-b16-fullcc2.5b", "ViT-B-16-quickgelu/metaclip_fullcc", "ViT-B/16", 149.6, 224, 512, _NC, 72.1, _META),
    ("metaclip-l14-fullcc2.5b", "ViT-L-14-quickgelu/metaclip_fullcc", "ViT-L/14", 427.6, 224, 768, _NC, 79.2, _META),
    ("metaclip-h14-fullcc2.5b", "ViT-H-14-quickgelu/metaclip_fullcc", "ViT-H/14", 986.1, 224, 1024, _NC, 80.5, _META),
    ("mobileclip-s1", "MobileCLIP-S1/datacompdr", "FastViT-MCi1", 85.0, 256, 512, _AMLR, 72.6, _APPLE),
    ("mobileclip-s2", "MobileCLIP-S2/datacompdr", "FastViT-MCi2", 99.2, 256, 512, _AMLR, 74.4, _APPLE),
    ("mobileclip-b", "MobileCLIP-B/datacompdr", "ViT-B/16 MCi", 149.8, 224, 512, _AMLR, 76.8, _APPLE),
    ("mobileclip-b-lt", "MobileCLIP-B/datacompdr_lt", "ViT-B/16 MCi", 149.8, 224, 512, _AMLR, 77.2, _APPLE),
    ("mobileclip2-s0", "MobileCLIP2-S0/dfndr2b", "FastViT-MCi0", 74.8, 256, 512, _AMLR, 71.5, _APPLE),
    ("mobileclip2-s2", "MobileCLIP2-S2/dfndr2b", "FastViT-MCi2", 99.2, 256, 512, _AMLR, 77.2, _APPLE),
    ("mobileclip2-b", "MobileCLIP2-B/dfndr2b", "ViT-B/16 MCi", 149.8, 224, 512, _AMLR, 79.4, _APPLE),
    ("mobileclip2-s3", "MobileCLIP2-S3/dfndr2b", "FastViT-MCi3", 248.9, 256, 768, _AMLR, 80.7, _APPLE),
    ("mobileclip2-s4", "MobileCLIP2-S4/dfndr2b", "FastViT-MCi4", 445.4, 256, 768, _AMLR, 81.9, _APPLE),
    ("mobileclip2-l-14", "MobileCLIP2-L-14/dfndr2b", "ViT-L/14", 427.6, 224, 768, _AMLR, 81.9, _APPLE),
)

# name of the repository under google/, architecture, parameters, side, embedding, top-1, its source
_SIGLIP = (
    ("siglip-base-patch16-224", "ViT-B/16", 203.2, 224, 768, 76.04, _OPEN_CLIP),
    ("siglip-base-patch16-256", "ViT-B/16", 203.2, 256, 768, 76.53, _OPEN_CLIP),
    ("siglip-base-patch16-384", "ViT-B/16", 203.4, 384, 768, 78.49, _OPEN_CLIP),
    ("siglip-base-patch16-512", "ViT-B/16", 203.8, 512, 768, 79.14, _OPEN_CLIP),
    ("siglip-large-patch16-256", "ViT-L/16", 652.2, 256, 1024, 80.45, _OPEN_CLIP),
    ("siglip-large-patch16-384", "ViT-L/16", 652.5, 384, 1024, 82.07, _OPEN_CLIP),
    ("siglip-so400m-patch14-224", "SO400M/14", 877.4, 224, 1152, 82.03, _OPEN_CLIP),
    ("siglip-so400m-patch14-384", "SO400M/14", 878.0, 384, 1152, 83.08, _OPEN_CLIP),
    ("siglip2-base-patch32-256", "ViT-B/32", 376.9, 256, 768, 74.0, _SIGLIP2),
    ("siglip2-base-patch16-224", "ViT-B/16", 375.2, 224, 768, 78.2, _SIGLIP2),
    ("siglip2-base-patch16-256", "ViT-B/16", 375.2, 256, 768, 79.1, _SIGLIP2),
    ("siglip2-base-patch16-384", "ViT-B/16", 375.5, 384, 768, 80.6, _SIGLIP2),
    ("siglip2-base-patch16-512", "ViT-B/16", 375.8, 512, 768, 81.2, _SIGLIP2),
    ("siglip2-large-patch16-256", "ViT-L/16", 881.5, 256, 1024, 82.5, _SIGLIP2),
    ("siglip2-large-patch16-384", "ViT-L/16", 881.9, 384, 1024, 83.1, _SIGLIP2),
    ("siglip2-large-patch16-512", "ViT-L/16", 882.3, 512, 1024, 83.5, _SIGLIP2),
    ("siglip2-so400m-patch14-224", "SO400M/14", 1135.5, 224, 1152, 83.2, _SIGLIP2),
    ("siglip2-so400m-patch14-384", "SO400M/14", 1136.0, 384, 1152, 84.1, _SIGLIP2),
    ("siglip2-so400m-patch16-256", "SO400M/16", 1135.7, 256, 1152, 83.4, _SIGLIP2),
    ("siglip2-so400m-patch16-384", "SO400M/16", 1136.0, 384, 1152, 84.1, _SIGLIP2),
    ("siglip2-so400m-patch16-512", "SO400M/16", 1136.6, 512, 1152, 84.3, _SIGLIP2),
)

# name of the repository under wkcn/, parameters, top-1
_TINYCLIPS = (
    ("TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", "ViT-8M/16", 23.4, 41.1),
    ("TinyCLIP-ViT-39M-16-Text-19M-YFCC15M", "ViT-39M/16", 83.1, 63.5),
    ("TinyCLIP-ViT-40M-32-Text-19M-LAION400M", "ViT-40M/32", 84.2, 59.8),
    ("TinyCLIP-ViT-61M-32-Text-29M-LAION400M", "ViT-61M/32", 115.4, 62.4),
)

_NAFLEX, _PATCHES = "siglip2-naflex", "256 patches"

LLAVA_SMALL = Entry(
    name="llava-interleave-qwen-0.5b", tasks=_SAY, architecture="SigLIP SO400M/14 + Qwen1.5-0.5B", parameters=864.0,
    input="384x384", embedding=1024, licence=_ASK_THE_CARD, reference="hf:llava-hf/llava-interleave-qwen-0.5b-hf",
    family="llava", stored=2,
)  # fmt: skip

# reference, tasks, family, architecture, parameters, input, embedding, licence
_OTHERS = (
    ("google/siglip2-base-patch16-naflex", _PAIR, _NAFLEX, "ViT-B/16", 375.2, _PATCHES, 768, "Apache-2.0"),
    ("google/siglip2-so400m-patch16-naflex", _PAIR, _NAFLEX, "SO400M/16", 1135.7, _PATCHES, 1152, "Apache-2.0"),
    ("facebook/dinov2-small", _TOWER, "dinov2", "ViT-S/14", 22.1, "224x224", 384, "Apache-2.0"),
    ("facebook/dinov2-base", _TOWER, "dinov2", "ViT-B/14", 86.6, "224x224", 768, "Apache-2.0"),
    ("facebook/dinov2-large", _TOWER, "dinov2", "ViT-L/14", 304.4, "224x224", 1024, "Apache-2.0"),
    ("facebook/dinov2-giant", _TOWER, "dinov2", "ViT-g/14", 1136.5, "224x224", 1536, "Apache-2.0"),
    ("facebook/dinov2-with-registers-small", _TOWER, "dinov2", "ViT-S/14 reg", 22.1, "224x224", 384, "Apache-2.0"),
    ("facebook/dinov2-with-registers-base", _TOWER, "dinov2", "ViT-B/14 reg", 86.6, "224x224", 768, "Apache-2.0"),
    ("facebook/dinov2-with-registers-large", _TOWER, "dinov2", "ViT-L/14 reg", 304.4, "224x224", 1024, "Apache-2.0"),
    ("apple/aimv2-large-patch14-224", _TOWER, "aimv2", "AIMv2-L/14", 309.2, "224x224", 1024, _ASK_THE_CARD),
    ("apple/aimv2-large-patch14-336", _TOWER, "aimv2", "AIMv2-L/14", 309.5, "336x336", 1024, _ASK_THE_CARD),
    ("apple/aimv2-huge-patch14-224", _TOWER, "aimv2", "AIMv2-H/14", 680.9, "224x224", 1536, _ASK_THE_CARD),
    ("apple/aimv2-1B-patch14-224", _TOWER, "aimv2", "AIMv2-1B/14", 1235.0, "224x224", 2048, _ASK_THE_CARD),
    ("google/owlvit-base-patch32", _DETECT, "owlvit", "ViT-B/32", 153.2, "768x768", 512, "Apache-2.0"),
    ("google/owlvit-base-patch16", _DETECT, "owlvit", "ViT-B/16", 152.8, "768x768", 512, "Apache-2.0"),
    ("google/owlvit-large-patch14", _DETECT, "owlvit", "ViT-L/14", 433.9, "840x840", 768, "Apache-2.0"),
    ("google/owlv2-base-patch16-ensemble", _DETECT, "owlv2", "ViT-B/16", 155.0, "960x960", 512, "Apache-2.0"),
    ("google/owlv2-large-patch14-ensemble", _DETECT, "owlv2", "ViT-L/14", 437.6, "1008x1008", 768, "Apache-2.0"),
    ("CIDAS/clipseg-rd64-refined", _SEGMENT, "clipseg", "ViT-B/16", 152.5, "352x352", 512, _ASK_THE_CARD),
)  # fmt: skip


def _family(name: str) -> str:
    if name.startswith(("mobileclip2-s3", "mobileclip2-s4")):
        return "mobileclip2-large"
    if name.startswith("mobileclip") and name != "mobileclip2-l-14":
        return "mobileclip"
    return "clip-half" if name == "clip-vit-l-14-laion2b" else "clip"


def _entries() -> list[Entry]:
    square = "{0}x{0}".format
    clips = [
        Entry(
            name, _PAIR, architecture, parameters, square(side), width, licence,
            f"open_clip:{tag}", _family(name), top1, top1_source,
        )
        for name, tag, architecture, parameters, side, width, licence, top1, top1_source in _CLIP_LIKE
    ]  # fmt: skip
    siglips = [
        Entry(
            name, _PAIR, architecture, parameters, square(side), width, "Apache-2.0",
            f"hf:google/{name}", name.partition("-")[0], top1, top1_source,
        )
        for name, architecture, parameters, side, width, top1, top1_source in _SIGLIP
    ]  # fmt: skip
    tinyclips = [
        Entry(
            name.lower(), _PAIR, architecture, parameters, "224x224", 512, "MIT",
            f"hf:wkcn/{name}", "clip", top1, _TINYCLIP,
        )
        for name, architecture, parameters, top1 in _TINYCLIPS
    ]  # fmt: skip
    others = [
        Entry(
            repository.partition("/")[2].lower(), tasks, architecture, parameters, size, width, licence,
            f"hf:{repository}", family,
        )
        for repository, tasks, family, architecture, parameters, size, width, licence in _OTHERS
    ]  # fmt: skip
    return [TINY, *clips, *tinyclips, *siglips, *others, LLAVA_SMALL]


MODELS: dict[str, Entry] = {entry.name: entry for entry in _entries()}

PHOTO_NAME = "photo"

# What `photo` stands for, task by task: published for photographs, and of a size that a laptop runs.
PHOTO: dict[str, str] = {
    "caption": LLAVA_SMALL.name,
    "ask": LLAVA_SMALL.name,
    "detect": "owlv2-base-patch16-ensemble",
    "segment": "clipseg-rd64-refined",
    "matte": "clipseg-rd64-refined",
    "classify": "siglip2-base-patch16-224",
    "embed": "siglip2-base-patch16-224",
}

# What settles the edges of the mattes that the segmentation of `photo` finds.
PHOTO_MATTER = Entry(
    name="vitmatte-small-composition-1k", tasks=("matte",), architecture="ViTMatte-S", parameters=25.8, input="any",
    embedding=384, licence=_ASK_THE_CARD, reference="hf:hustvl/vitmatte-small-composition-1k",
)  # fmt: skip


def no_photo(task: str = "a call without a task and encode") -> CheckpointError:
    """The error of one who asks `photo` where it stands for no model."""
    known = ", ".join(f"{each} ({name})" for each, name in PHOTO.items())
    return CheckpointError(f"no model {PHOTO_NAME!r} for {task}; it stands for one model in each of: {known}")


EMBEDDED = Path(__file__).resolve().parent / "weights"


def reference(name: str) -> str | None:
    """Where the weights of a published model lie: `hf:org/name` or `open_clip:NAME/TAG`.

    None for an embedded model and for a name that is not in the table.
    """
    entry = MODELS.get(name)
    return entry.reference or None if entry else None


def find(name: str) -> Path:
    """The folder of a model on this machine: an embedded one by its name, or a folder of yours by its path.

    Raises:
        CheckpointError: neither.
    """
    if name in MODELS and not MODELS[name].reference:
        return EMBEDDED / name
    folder = Path(name)
    if (folder / "config.json").is_file() or (folder / "open_clip_config.json").is_file():
        return folder
    raise CheckpointError(
        f"no model {name!r}: neither a name from `mm models` nor a folder with a config.json." + nearest(name, MODELS)
    )
