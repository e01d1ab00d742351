"""How results read as plain text: one line per picture, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mm.results.lettering import visible

if TYPE_CHECKING:
    from mm.types import Caption, Classification, Detections, Embeddings, Matte, Segmentation


def caption(result: Caption) -> str:
    return result.text


def detections(result: Detections) -> str:
    """``car 0.93 [12 30 80 95]; dog 0.55 [...]``: left, top, right, bottom."""
    found = []
    for box, score, label in zip(result.boxes_xyxy, result.scores, result.labels, strict=True):
        found.append(f"{label} {score:.2f} [{' '.join(f'{side:.0f}' for side in box)}]")
    return "; ".join(found) or "nothing found"


def segmentation(result: Segmentation) -> str:
    """``car 12.5 %; tree 0.0 %``: the share of the picture under each mask."""
    shares = [float(mask.mean()) if mask.size else 0.0 for mask in result.masks]
    return "; ".join(f"{label} {share:.1%}" for label, share in zip(result.labels, shares, strict=True))


def matte(result: Matte) -> str:
    """``12.5 % opaque``: the mean of alpha."""
    return f"{float(result.alpha.mean()):.1%} opaque"


def classification(result: Classification) -> str:
    """``car 0.91; dog 0.05``, best first."""
    return "; ".join(f"{label} {score:.3f}" for label, score in result.top(len(result)))


def embeddings(result: Embeddings) -> str:
    """The length and the first numbers of the one vector; --json holds it whole."""
    (vector,) = result.vectors
    return f"{len(vector)} numbers: {' '.join(f'{number:.4f}' for number in vector[:4])} …"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns by the keys of the first row, widths by the longest cell, two spaces between."""
    if not rows:
        return "nothing to show"
    columns = list(rows[0])
    cells = [columns, *([visible(_cell(row.get(column))) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same rows as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)).replace("|", "\\|") for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def flatten(scores: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """A nested dictionary as rows ``measure, value``, the keys joined by spaces."""
    rows: list[dict[str, Any]] = []
    for key, value in scores.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping):
            rows += flatten(value, name)
        else:
            rows.append({"measure": name, "value": value})
    return rows


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(part) for part in value)
    return str(value)
