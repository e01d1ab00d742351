"""Embedded colour profiles: converted to sRGB, or noted and ignored."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from mm.images import open_image

BACKGROUND = (10, 200, 30)


def encoded(image, format_name, **options):
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def row(source, **options):
    """The pixels of the first row as lists."""
    return open_image(source, **options).pixels[0].tolist()


# Colour profiles.


def wide_profile():
    """A display profile whose primaries are BT.2020's, from sRGB's own bytes with other colorant columns."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    columns = {
        b"rXYZ": (0.6734, 0.2790, -0.0019),
        b"gXYZ": (0.1656, 0.6753, 0.0300),
        b"bXYZ": (0.1251, 0.0456, 0.7971),
    }
    for entry in range(struct.unpack_from(">I", data, 128)[0]):
        tag, at, _ = struct.unpack_from(">4sII", data, 132 + 12 * entry)
        if tag in columns:
            struct.pack_into(">3i", data, at + 8, *(round(65536 * v) for v in columns[tag]))
    return bytes(data).replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))


def test_a_wide_gamut_profile_is_converted_to_srgb():
    image = Image.new("RGB", (2, 1), (150, 100, 100))
    data = encoded(image, "PNG", icc_profile=wide_profile())
    picture = open_image(data)
    red, green, blue = row(data)[0]
    assert picture.notes == ()
    assert red >= 155 and green <= 98  # the same numbers are more colourful in a wider space
    transparent = Image.new("RGBA", (1, 1), (150, 100, 100, 0))
    assert row(encoded(transparent, "PNG", icc_profile=wide_profile()), background=BACKGROUND) == [list(BACKGROUND)]
    grey_picture = encoded(Image.new("L", (1, 1), 77), "PNG", icc_profile=wide_profile())
    assert np.abs(np.array(row(grey_picture)) - 77).max() <= 1


def test_an_srgb_profile_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(1).integers(0, 256, (5, 5, 3), np.uint8)
    assert np.array_equal(open_image(encoded(Image.fromarray(pixels), "PNG", icc_profile=profile)).pixels, pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_broken_profile_is_noted_and_ignored(mode):
    image = Image.new("RGB", (16, 16), (150, 150, 150)).convert(mode)
    picture = open_image(encoded(image, "JPEG", icc_profile=b"not a profile" * 20))
    assert picture.notes == ("unusable colour profile ignored",)
    assert np.abs(picture.pixels.astype(int) - 150).max() <= 3
    rgb_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert open_image(encoded(image, "JPEG", icc_profile=rgb_profile)).notes == ("unusable colour profile ignored",)


def test_oversized_profiles_and_texts_are_noted_and_ignored():
    image = Image.new("RGB", (4, 4), (9, 8, 7))
    ten_megabytes = bytes(10_000_000)
    jpeg = open_image(encoded(image, "JPEG", icc_profile=ten_megabytes))
    assert jpeg.notes == ("oversized colour profile ignored",)
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 10_000_000, zip=True)
    for data in (encoded(image, "PNG", pnginfo=info), encoded(image, "PNG", icc_profile=ten_megabytes)):
        picture = open_image(data)
        assert picture.notes == ("oversized text or colour profile ignored",)
        assert picture.pixels[0, 0].tolist() == [9, 8, 7]
