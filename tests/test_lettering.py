from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mm.errors import InputError
from mm.results.lettering import FONT, Lettering, visible


def test_what_hides_or_reorders_text_is_escaped():
    assert visible("a\nb\tc\x00\x1b[31m") == r"a\nb\tc\x00\x1b[31m"
    assert visible("dog\u202egod\u2066\u200e") == r"dog\u202egod\u2066\u200e"
    assert visible("\ud800 \ufeff\u200b\u2028\U000e0041") == r"\ud800 \ufeff\u200b\u2028\U000e0041"
    assert visible("naïve Ω Ж 猫 👍 e\u0301 می\u200cخواهم") == "naïve Ω Ж 猫 👍 e\u0301 می\u200cخواهم"


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox, 0123456789 (%) [x] {y} – “so” … →",
        "ÄÖÜäöüß ñ ç ø å æ œ ł ż ź ő ű ğ ş ı č ř ů ț",
        "Tiếng Việt: ẩ ễ ợ ữ",
        "ΑΒΓΔ αβγδ ά έ ή ί ό ύ ώ ᾧ",
        "АБВГД абвгд ё ї є ґ љ њ ў",
        "שלום עולם",
        "سيارة حمراء",
        "e\u0301 o\u0308",
    ],
)
def test_the_font_shows_these_scripts_as_they_are(text):
    assert Lettering(16).shown(text) == text


def test_what_the_font_lacks_is_escaped_rather_than_boxed():
    assert Lettering(16).shown("猫 cat 😀") == r"\u732b cat \U0001f600"


def test_the_font_is_small_and_has_its_licence_beside_it():
    assert FONT.stat().st_size < 250_000
    assert "Bitstream" in (FONT.parent / "LICENSE_DEJAVU").read_text(encoding="utf-8")


def test_lines_fit_and_lose_nothing():
    letters = Lettering(14)
    text = "Two red cars and a small house stand by a tree " * 5 + "x" * 200
    lines = letters.wrapped(text, 150, most=100)
    assert max(map(letters.width, lines)) <= 150
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert letters.wrapped("", 150, most=5) == [""]


def test_newlines_break_lines_and_are_shown():
    assert Lettering(14).wrapped("one\n\ntwo", 300, most=9) == ["one\\n", "\\n", "two"]


def test_too_many_lines_end_in_an_ellipsis():
    letters = Lettering(14)
    for text in ("word " * 10_000, "\n" * 10_000, "x" * 50_000):
        assert letters.wrapped(text, 80, most=3)[3:] == ["…"]
    assert len(letters.wrapped("a\nb\nc", 80, most=3)) == 3


def test_a_width_for_nothing_still_ends():
    assert Lettering(14).wrapped("abc", 1, most=9) == ["a", "b", "c"]


def test_names_are_shortened_to_fit_and_accents_stay_on_their_letters():
    letters = Lettering(14)
    assert letters.shortened("short", 200) == "short"
    long = letters.shortened("a very long label indeed", 80)
    assert long.endswith("…") and letters.width(long) <= 80
    accented = "e\u0301" * 40
    cut = letters.shortened(accented, 80).removesuffix("…")
    assert len(cut) % 2 == 0 and accented.startswith(cut)


def test_another_font_can_be_given(tmp_path: Path):
    copy = tmp_path / "other.ttf"
    copy.write_bytes(FONT.read_bytes())
    assert Lettering(14, copy).shown("Ж") == "Ж"
    for wrong in (tmp_path / "none.ttf", tmp_path):
        with pytest.raises(InputError, match="font: expected a TrueType"):
            Lettering(14, wrong)


def test_letters_are_really_drawn():
    font = Lettering(20).font
    drawn = [np.asarray(font.getmask(char)).tobytes() for char in "AΩЖא"]
    assert len(set(drawn)) == 4 and all(any(each) for each in drawn)
