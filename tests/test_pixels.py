"""What the gate makes of every kind of pixel: exact values, orientation, colour, transparency."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mm.errors import ImageInputError, ResourceLimitError
from mm.images import open_image
from mm.limits import DEFAULT_LIMITS, Limits

BACKGROUND = (10, 200, 30)


def encoded(image, format_name, **options):
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, rows, *extra):
    """A PNG of our own making; rows without their filter bytes."""
    per_row = len(rows) // height
    raw = b"".join(b"\0" + rows[i * per_row : (i + 1) * per_row] for i in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def row(source, **options):
    """The pixels of the first row as lists."""
    return open_image(source, **options).pixels[0].tolist()


def grey(*values):
    return [[v, v, v] for v in values]


def test_lossless_formats_keep_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    image = Image.fromarray(pixels)
    for format_name, options in (("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        picture = open_image(encoded(image, format_name, **options))
        assert np.array_equal(picture.pixels, pixels), format_name
        assert picture.notes == ()


def test_lossy_formats_and_gif_are_read():
    image = Image.new("RGB", (16, 12), (200, 40, 90))
    for format_name in ("JPEG", "AVIF", "GIF", "WEBP"):
        picture = open_image(encoded(image, format_name))
        assert picture.size_hw == (12, 16)
        assert np.abs(picture.pixels.astype(int) - (200, 40, 90)).max() <= 6, format_name


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    expected = grey(0, 0, 1, 128, 255)
    assert row(encoded(Image.fromarray(values), "PNG")) == expected
    assert row(encoded(Image.fromarray(values), "TIFF")) == expected
    assert row(png(5, 1, 16, 0, values.astype(">u2").tobytes())) == expected
    assert row(values) == row(values.astype(">u2")) == expected
    big_endian = Image.frombytes("I;16B", (5, 1), values.astype(">u2").tobytes())
    assert row(big_endian) == expected


def test_thirty_two_bit_grey_is_read_as_sixteen_bit():
    image = Image.fromarray(np.array([[0, 256, 65535]], np.int32))
    assert image.mode == "I"
    assert row(image) == row(encoded(image, "TIFF")) == grey(0, 1, 255)
    for outside in (-1, 65536):
        with pytest.raises(ImageInputError, match="0-65535"):
            open_image(Image.fromarray(np.array([[0, outside]], np.int32)))


def test_sixteen_bit_grey_that_would_turn_black_is_noted():
    assert "black" in open_image(np.array([[0, 200]], np.uint16)).notes[0]
    assert open_image(np.zeros((1, 2), np.uint16)).notes == ()


def test_float_tiff_is_scaled_and_refused_outside_its_range():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert image.mode == "F"
    assert row(encoded(image, "TIFF")) == row(image) == grey(0, 128, 255)
    for outside in (255.0, -0.5, np.nan, np.inf):
        with pytest.raises(ImageInputError, match="floats 0-1|finite"):
            open_image(encoded(Image.fromarray(np.array([[0, outside]], np.float32)), "TIFF"))


def test_transparency_shows_the_background_and_never_the_hidden_colour():
    hidden, shown = (255, 0, 0), (1, 2, 3)
    rgba = Image.new("RGBA", (2, 1))
    rgba.putdata([(*hidden, 0), (*shown, 255)])
    expected = [list(BACKGROUND), list(shown)]
    for format_name, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert row(encoded(rgba, format_name, **options), background=BACKGROUND) == expected, format_name
    assert row(rgba) == [[255, 255, 255], list(shown)]
    assert row(rgba.convert("RGBa"), background=BACKGROUND) == expected
    assert row(np.array(rgba), background=BACKGROUND, channel_order="HWC") == expected
    assert row(rgba.convert("PA"), background=BACKGROUND)[0] == list(BACKGROUND)


def test_half_transparency_is_a_rounded_mix():
    half = np.array([[[255, 0, 100, 128]]], np.uint8)
    alpha = 128 / 255
    expected = [round(c * alpha + b * (1 - alpha)) for c, b in zip((255, 0, 100), BACKGROUND, strict=True)]
    assert row(half, background=BACKGROUND, channel_order="HWC") == [expected]
    grey_alpha = Image.new("LA", (1, 1), (100, 128))
    expected = [round(100 * alpha + b * (1 - alpha)) for b in BACKGROUND]
    assert row(encoded(grey_alpha, "PNG"), background=BACKGROUND) == [expected]


def test_a_transparent_palette_entry_shows_the_background():
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    expected = [list(BACKGROUND), [0, 255, 0], [0, 0, 255]]
    for data in (encoded(palette, "PNG", transparency=0), encoded(palette, "GIF", transparency=0)):
        assert row(data, background=BACKGROUND) == expected
    several = row(encoded(palette, "PNG", transparency=bytes([0, 255, 0])), background=BACKGROUND)
    assert several == [list(BACKGROUND), [0, 255, 0], list(BACKGROUND)]
    assert row(encoded(palette, "PNG"))[0] == [255, 0, 0]


@pytest.mark.parametrize(
    ("depth", "rows", "key", "expected"),
    [
        (1, bytes([0b01010000]), 1, [0, None, 0, None]),
        (1, bytes([0b01010000]), 0, [None, 255, None, 255]),
        (2, bytes([0b00011011]), 2, [0, 85, None, 255]),
        (4, bytes([0x05, 0xAF]), 5, [0, None, 170, 255]),
        (8, bytes([0, 5, 10, 15]), 5, [0, None, 10, 15]),
        (16, struct.pack(">4H", 0, 300, 301, 65535), 300, [0, None, 1, 255]),
    ],
)
def test_the_transparent_grey_of_a_png_is_found_at_every_depth(depth, rows, key, expected):
    data = png(4, 1, depth, 0, rows, chunk(b"tRNS", struct.pack(">H", key)))
    wanted = [list(BACKGROUND) if value is None else [value] * 3 for value in expected]
    assert row(data, background=BACKGROUND) == wanted


def test_the_transparent_colour_of_a_png_is_found_at_both_depths():
    colours = [(255, 0, 0), (0, 0, 200), (9, 9, 9)]
    expected = [list(BACKGROUND), [0, 0, 200], [9, 9, 9]]
    eight = png(3, 1, 8, 2, bytes(sum(colours, ())), chunk(b"tRNS", struct.pack(">3H", 255, 0, 0)))
    assert row(eight, background=BACKGROUND) == expected
    wide = struct.pack(">9H", *(257 * c for colour in colours for c in colour))
    sixteen = png(3, 1, 16, 2, wide, chunk(b"tRNS", struct.pack(">3H", 65535, 0, 0)))
    assert row(sixteen, background=BACKGROUND) == expected


def test_other_modes_become_rgb():
    assert row(Image.new("1", (1, 1), 1)) == [[255, 255, 255]]
    for mode in ("L", "HSV", "YCbCr", "LAB", "RGBX"):
        image = Image.new("RGB", (1, 1), (120, 120, 120)).convert(mode)
        assert np.abs(np.array(row(image)) - 120).max() <= 2, mode


def test_cmyk_is_converted():
    colours = Image.new("RGB", (24, 8), (200, 30, 60))
    data = encoded(colours.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(np.array(row(data)) - (200, 30, 60)).max() <= 4
    assert row(Image.new("CMYK", (1, 1), (0, 255, 255, 0))) == [[255, 0, 0]]


# Orientation.

UPRIGHT = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
# How a camera that was held otherwise stores the same picture, by EXIF orientation.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(orientation):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    expected = np.repeat(UPRIGHT[:, :, None], 3, axis=2)
    lossless = (
        encoded(stored, "PNG", exif=exif(orientation)),
        encoded(stored.convert("RGB"), "WEBP", exif=exif(orientation), lossless=True),
        encoded(stored, "TIFF", tiffinfo={0x0112: orientation}),
    )
    for data in lossless:
        picture = open_image(data)
        assert np.array_equal(picture.pixels, expected)
        assert np.array_equal(np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")), expected)
        assert np.array_equal(open_image(Image.open(io.BytesIO(data))).pixels, expected)
        assert picture.size_hw == (2, 3)
    blocks = stored.resize((stored.width * 16, stored.height * 16), Image.Resampling.NEAREST).convert("RGB")
    for format_name in ("JPEG", "AVIF"):
        picture = open_image(encoded(blocks, format_name, exif=exif(orientation), quality=95))
        assert picture.size_hw == (32, 48)
        assert np.abs(picture.pixels[8::16, 8::16].astype(int) - expected).max() <= 3, format_name


def test_orientation_may_stand_in_xmp():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf tiff:Orientation="6"/>')
    data = encoded(Image.fromarray(np.ascontiguousarray(STORED[6])), "PNG", pnginfo=info)
    assert np.array_equal(open_image(data).pixels[:, :, 0], UPRIGHT)


@pytest.mark.parametrize(
    ("broken", "note"),
    [
        (b"Exif\0\0garbage", "broken EXIF ignored"),
        (b"Exif\0\0II*\0\x08\0\0\0\x05\0", "broken EXIF ignored"),
        (b"Exif\0\0MM\0*\xff\xff\xff\xff", "broken EXIF ignored"),
        (exif(9), "EXIF orientation 9 ignored: expected 1-8"),
    ],
)
def test_broken_exif_is_noted_and_the_picture_kept(broken, note):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = open_image(encoded(Image.fromarray(UPRIGHT), "PNG", exif=broken))
    assert picture.notes == (note,)
    assert np.array_equal(picture.pixels[:, :, 0], UPRIGHT)


# Frames.


def gif_of(frames):
    """A GIF of single red, then blue pixels, written by hand so that ten thousand cost nothing."""
    header = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\xff\0\0\0\0\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02"
    return header + frame + b"\x44\x01\0" + (frame + b"\x4c\x01\0") * (frames - 1) + b";"


@pytest.mark.parametrize("frames", [10, 10_000])
def test_only_the_first_frame_of_a_gif_is_read(frames):
    data = gif_of(frames)
    picture = open_image(data)
    assert picture.pixels.tolist() == [[[255, 0, 0]]]
    assert picture.notes == ("only the first of several frames is read",)


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_only_the_first_frame_of_other_animations_is_read(format_name):
    frames = [Image.new("RGB", (16, 16), (25 * i, 10, 200)) for i in range(10)]
    options = {"lossless": True} if format_name == "WEBP" else {}
    picture = open_image(encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options))
    assert np.abs(picture.pixels.astype(int) - (0, 10, 200)).max() <= 3
    assert picture.notes == ("only the first of several frames is read",)


def test_tiff_samples_and_tiles_that_ask_for_memory_are_refused():
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "TIFF"))
    at = data.index(struct.pack("<HHI", 277, 3, 1)) + 8
    data[at : at + 2] = b"\xff\xff"
    with pytest.raises(ImageInputError, match="truncated or damaged TIFF"):
        open_image(bytes(data))
    entries = [
        (256, 8),
        (257, 8),
        (258, 8),
        (259, 1),
        (262, 1),
        (277, 1),
        (322, 60000),
        (323, 60000),
        (324, 8),
        (325, 64),
    ]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    tiled = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + body + bytes(4)
    with pytest.raises(ResourceLimitError, match="tiles of 60000 x 60000"):
        open_image(tiled)


def tiff_that_makes_pillow_warn():
    """A 4 x 4 grey TIFF that gives two resolution units."""
    pixels_at = 8 + 2 + 12 * 10 + 4
    ones = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, pixels_at), (277, 1), (278, 4), (279, 16)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in ones)
    body += struct.pack("<HHIHH", 296, 3, 2, 2, 2)
    return struct.pack("<2sHIH", b"II", 42, 8, 10) + body + bytes(4) + bytes(range(16))


def test_warnings_of_pillow_stay_at_the_gate_and_filters_come_back(monkeypatch):
    data = tiff_that_makes_pillow_warn()
    with pytest.warns(UserWarning, match="too many entries"):
        Image.open(io.BytesIO(data)).load()
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = list(warnings.filters)
        assert open_image(data).pixels[:, :, 0].tolist() == np.arange(16).reshape(4, 4).tolist()
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow would warn of 12 x 12, and refuse 20 x 12
        assert open_image(encoded(Image.new("1", (12, 12)), "PNG")).size_hw == (12, 12)
        assert open_image(encoded(Image.new("1", (20, 12)), "PNG")).size_hw == (12, 20)
        assert warnings.filters == inside
    assert warnings.filters == before


def test_threads_read_side_by_side():
    data = encoded(Image.fromarray(UPRIGHT), "PNG", exif=exif(1))
    before, results = list(warnings.filters), []

    def read():
        for _ in range(40):
            results.append(open_image(data).digest)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 320 and len(set(results)) == 1
    assert warnings.filters == before


def test_the_limits_are_those_of_the_call():
    data = encoded(Image.new("L", (20, 10)), "PNG")
    with pytest.raises(ResourceLimitError, match="20 x 10 is above max_pixels=199"):
        open_image(data, limits=Limits(max_pixels=199))
    with pytest.raises(ResourceLimitError, match="max_side=19"):
        open_image(data, limits=Limits(max_side=19))
    assert open_image(data, limits=DEFAULT_LIMITS).size_hw == (10, 20)
