"""Files that are replaced as a whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm.files import replace_text, replacing


def test_a_file_is_replaced_by_what_was_written(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("before", "utf-8")
    replace_text(target, "nach\u00fcber")
    assert target.read_text("utf-8") == "nach\u00fcber"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_half_way_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("before", "utf-8")
    with pytest.raises(RuntimeError, match="half way"), replacing(target) as partial:
        partial.write_text("aft", "utf-8")
        assert target.read_text("utf-8") == "before" and partial.parent == tmp_path
        raise RuntimeError("half way")
    assert target.read_text("utf-8") == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
