"""A data set as plain folders: `images/`, and beside it grey pictures of what is true, in a folder for each label."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mm.errors import ImageInputError, InputError
from mm.images import Picture, open_image
from mm.labels import check_labels

_SUFFIXES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class GreyFolder:
    """Pictures in `images/`, and for some of them a grey PNG of the same stem in `masks/LABEL/` or `alpha/LABEL/`.

    Underscores in the name of a label's folder are read as spaces. Only pictures with such a truth count.

    kind: `masks` or `alpha`. label: what all the PNGs show that lie in `kind` itself, without folders for labels.

    Raises:
        InputError: a folder is missing, there is no truth, or two pictures have the same stem.
    """

    def __init__(self, home: Path, kind: str, *, label: str | None = None) -> None:
        for part in (home, home / "images", home / kind):
            if not part.is_dir():
                said = home.name if part == home else f"{home.name}/{part.name}"
                raise InputError(f"no folder {said!r}; expected {home.name}/images and {home.name}/{kind}")
        self._pictures = _by_stem(home / "images")
        homes = _label_folders(home / kind) if label is None else {label: home / kind}
        self.labels = check_labels(homes).unique if homes else ()
        self._truths: dict[str, dict[str, Path]] = {}
        for name, folder in zip(self.labels, homes.values(), strict=True):
            for path in sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png"):
                self._truths.setdefault(path.stem, {})[name] = path
        if not self._truths:
            expected = (
                f"PNGs in {kind}/" if label is not None else f"PNGs in {kind}/LABEL/, or PNGs in {kind}/ and --label"
            )
            raise InputError(f"{home.name}: nothing to compare with; expected {expected}")
        self.keys = tuple(sorted(self._truths))

    def name(self, key: str) -> str:
        return self._pictures[key].name if key in self._pictures else key

    def labels_of(self, key: str) -> tuple[str, ...]:
        return tuple(self._truths[key])

    def picture(self, key: str) -> Picture:
        if key not in self._pictures:
            raise ImageInputError(f"{key}: there is a truth, but no picture of that name in images/")
        return open_image(self._pictures[key], name=self._pictures[key].name)

    def alphas(self, key: str, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
        """float32[H, W] in 0..1 by label. size_hw: of the picture.

        Raises:
            ImageInputError: a truth cannot be read, is not grey, or is not of the size of its picture.
        """
        return {label: _grey(path, size_hw) for label, path in self._truths[key].items()}

    def masks(self, key: str, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
        """bool[H, W] by label: true from half white. size_hw: of the picture.

        Raises:
            ImageInputError: as `alphas`, or a mask numbers its things instead of being black and white.
        """
        alphas = self.alphas(key, size_hw)
        for label, alpha in alphas.items():
            if 0 < alpha.max() < 0.5:
                top = round(255 * float(alpha.max()))
                raise ImageInputError(f"mask {label}/{key}.png: expected black and white, got nothing above {top}")
        return {label: alpha >= 0.5 for label, alpha in alphas.items()}


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        if path.stem in found:
            raise InputError(f"images/{path.name}: expected a name of its own, beside {found[path.stem].name}")
        found[path.stem] = path
    return found


def _label_folders(folder: Path) -> dict[str, Path]:
    homes: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        name = " ".join(path.name.replace("_", " ").split())
        if name in homes:
            raise InputError(f"{folder.name}/{path.name}: expected a label of its own, beside {homes[name].name}")
        homes[name] = path
    return homes


def _grey(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    name = f"{path.parent.name}/{path.name}"
    pixels = open_image(path, name=name).pixels
    if (pixels != pixels[..., :1]).any():
        raise ImageInputError(f"{name}: expected a grey picture, got colours")
    if pixels.shape[:2] != size_hw:
        raise ImageInputError(f"{name}: expected the size of its picture, {size_hw}, got {pixels.shape[:2]}")
    return pixels[..., 0].astype(np.float32) / 255
