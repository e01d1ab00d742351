"""The error family: what catches what, and the hint of a nearest name."""

from __future__ import annotations

import pytest

from mm import errors


@pytest.mark.parametrize("kind", [errors.ImageInputError, errors.TextInputError, errors.ResourceLimitError])
def test_bad_input_is_an_input_error_and_a_value_error(kind):
    assert issubclass(kind, errors.InputError)
    assert issubclass(kind, ValueError)
    assert issubclass(kind, errors.MMError)


def test_other_errors_join_the_builtin_family_of_their_kind():
    assert issubclass(errors.CheckpointError, ValueError)
    assert not issubclass(errors.CheckpointError, errors.InputError)
    assert issubclass(errors.MissingExtraError, ImportError)
    assert issubclass(errors.MissingExtraError, errors.MMError)


def test_nearest_names_the_closest_and_stays_silent_otherwise():
    assert errors.nearest("letterbx", ["squash", "letterbox"]) == ' Did you mean "letterbox"?'
    assert errors.nearest("TINY", ["tiny"]) == ' Did you mean "tiny"?'
    assert errors.nearest("zzz", ["squash", "letterbox"]) == ""
    assert errors.nearest("x", []) == ""
