"""What is accepted as a label or a prompt."""

from __future__ import annotations

import pytest

from mm.errors import ResourceLimitError, TextInputError
from mm.labels import check_labels, check_text
from mm.limits import Limits


def test_one_string_is_one_label_commas_and_all() -> None:
    assert check_labels("cat, dog").given == ("cat, dog",)


def test_duplicates_are_asked_once_and_keep_their_place() -> None:
    labels = check_labels(["cat", "red  car", "cat", " red car "])
    assert labels.unique == ("cat", "red car")
    assert labels.index == (0, 1, 0, 1)
    assert labels.given == ("cat", "red  car", "cat", " red car ")


@pytest.mark.parametrize("bad", [None, [], "", "   ", "\x00", "?!...", ["cat", ""], ["cat", 3], "\u202e\u200b"])
def test_nothing_to_look_for_is_refused(bad) -> None:
    with pytest.raises(TextInputError):
        check_labels(bad)


def test_the_message_says_which_label() -> None:
    with pytest.raises(TextInputError, match="label 2"):
        check_labels(["cat", " "])


def test_a_long_label_and_many_labels_are_refused_at_once() -> None:
    with pytest.raises(TextInputError, match="1,000,000 characters"):
        check_labels("x" * 1_000_000)
    with pytest.raises(ResourceLimitError, match="at most 3"):
        check_labels(["a", "b", "c", "d"], Limits(max_labels=3))


@pytest.mark.parametrize("text", ["猫", "قطة", "👩\u200d👩\u200d👧", "e\u0301", "\u202ecat", "\ud800 cat", "5 cats"])
def test_words_of_any_script_pass(text: str) -> None:
    assert check_labels([text]).given == (text,)
    assert check_text(text, "label", 100) == text
