"""The gate: which sources it takes, what it refuses, what it says, and what that costs."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from mm.errors import ImageInputError, InputError, ResourceLimitError
from mm.images import Picture, open_image
from mm.limits import Limits

PIXELS = np.random.default_rng(7).integers(0, 256, (6, 9, 3), np.uint8)


def encoded(image, format_name="PNG", **options):
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


PNG = encoded(Image.fromarray(PIXELS))


def bomb(width, height):
    """A one-bit PNG of enormous size in few bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_of_65535():
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


def refusal(source, kind=InputError, **options):
    """The message of the refusal; none may show an address or a path nobody gave."""
    with pytest.raises(kind) as caught:
        open_image(source, **options)
    message = str(caught.value)
    assert not re.search(r"\b0x[0-9a-f]{6,}", message)
    assert "BytesIO" not in message and "site-packages" not in message
    return message


# Sources.


def test_every_source_gives_the_same_picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        sources = [path, str(path), PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG), file]
        sources += [Image.fromarray(PIXELS), Image.open(path), PIXELS, PIXELS[::-1, ::-1][::-1, ::-1]]
        sources += [PIXELS.transpose(2, 0, 1), torch.tensor(PIXELS), torch.tensor(PIXELS).permute(2, 0, 1)]
        pictures = [open_image(source) for source in sources]
    for picture in pictures:
        assert np.array_equal(picture.pixels, PIXELS)
        assert picture == pictures[0] and hash(picture) == hash(pictures[0])
        assert picture.size_hw == (6, 9)
    names = [picture.name for picture in pictures]
    assert names[:2] == [str(path), str(path)]
    assert (
        names[2:] == ["<bytes>"] * 3 + ["<file>", "picture.png"] + ["<image>"] * 2 + ["<array>"] * 3 + ["<tensor>"] * 2
    )
    assert open_image(PNG, name="third").name == "third"
    assert open_image(pictures[0]) is pictures[0]


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "really a png.jpg"
    path.write_bytes(PNG)
    assert np.array_equal(open_image(path).pixels, PIXELS)


def test_a_picture_cannot_be_changed_and_gives_copies():
    array = PIXELS.copy()
    picture = open_image(array)
    array[:] = 0
    assert np.array_equal(picture.pixels, PIXELS)
    with pytest.raises(ValueError, match="read-only"):
        picture.pixels[0, 0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        picture.name = "other"
    image = picture.pil()
    image.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(picture.pixels, PIXELS)
    assert image.mode == "RGB" and image.size == (9, 6)
    writable = PIXELS.copy()
    direct = Picture(writable)
    writable[:] = 0
    assert direct == picture


@pytest.mark.parametrize("pixels", [PIXELS.astype(np.float32), PIXELS[:, :, 0], PIXELS[:0], PIXELS[:, :, :2]])
def test_a_picture_checks_itself(pixels):
    with pytest.raises(ImageInputError, match=r"uint8\[H, W, 3\]"):
        Picture(pixels)


def test_the_same_bytes_in_another_shape_are_another_picture():
    tall, wide = np.zeros((8, 2), np.uint8), np.zeros((2, 8), np.uint8)
    assert open_image(tall).digest != open_image(wide).digest
    assert open_image(tall) != open_image(wide)
    assert re.fullmatch("[0-9a-f]{64}", open_image(tall).digest)


def test_a_callers_pillow_image_is_left_as_it_was():
    image = Image.open(io.BytesIO(encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 0)))))
    before = (image.mode, image.size, dict(image.info))
    assert open_image(image).pixels[0, 0].tolist() == [255, 255, 255]
    assert (image.mode, image.size, dict(image.info)) == before


# Files that are no pictures.


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_half_a_file_is_refused(format_name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, format_name)
    assert "truncated" in refusal(data[: len(data) // 2], ImageInputError)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "truncated or damaged PNG"),
        (b"\xff\xd8\xff", "truncated or damaged JPEG"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "truncated or damaged WEBP"),
        (b"GIF89a", "truncated or damaged GIF"),
        (b"II*\0\x08\0\0\0", "truncated or damaged TIFF"),
        (b"BM", "truncated or damaged BMP"),
        (b"plain text, many times " * 20, "its content is none of them"),
    ],
)
def test_garbage_is_refused_by_name(data, words, tmp_path):
    assert words in refusal(data, ImageInputError)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    message = refusal(path, ImageInputError)
    assert message.startswith(f"{path}: ") and words in message


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n<?xml version='1.0'?><svg/>", "XML or SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"8BPS\0\1" + bytes(30), "PSD"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (encoded(Image.new("RGB", (8, 8)), "ICO"), "ICO"),
    ],
)
def test_other_formats_are_refused_whatever_their_name(data, kind, tmp_path):
    path = tmp_path / "renamed.jpg"
    path.write_bytes(data)
    assert f"it looks like {kind}" in refusal(path, ImageInputError)


def test_formats_that_pillow_could_read_are_refused():
    for format_name in ("PPM", "PCX", "TGA", "JPEG2000", "DDS", "SGI"):
        data = encoded(Image.new("RGB", (8, 8)), format_name)
        refusal(data, ImageInputError)
    lazy = Image.open(io.BytesIO(encoded(Image.new("RGB", (8, 8)), "PPM")))
    assert "it is PPM" in refusal(lazy, ImageInputError)


def test_bombs_are_refused_from_the_header_without_memory_or_time(tmp_path):
    for name, data in (("a", bomb(13_000, 13_000)), ("b", bomb(30_000, 30_000)), ("c", jpeg_of_65535())):
        (tmp_path / name).write_bytes(data)
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    (tmp_path / "d").write_bytes(gif + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\2\x44\1\0;")
    webp = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0) + (16382).to_bytes(3, "little") * 2
    (tmp_path / "e").write_bytes(b"RIFF" + struct.pack("<I", len(webp)) + webp)
    script = """
import resource, sys, time
from mm.errors import InputError
from mm.images import open_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        open_image(path)
        print("read", path)
    except InputError as exc:
        print(type(exc).__name__, exc)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    paths = [str(tmp_path / name) for name in "abcde"]
    root = pathlib.Path(__file__).parent.parent
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *paths],
        capture_output=True, text=True, cwd=root, timeout=60, check=True,
    )  # fmt: skip
    *lines, cost = ran.stdout.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("ResourceLimitError") for line in lines[:4]), lines
    assert lines[4].startswith(("ResourceLimitError", "ImageInputError")), lines
    assert "65535 x 65535" in lines[2]
    kilobytes = float(cost)
    assert kilobytes < 50_000


def test_the_pixels_of_a_callers_pillow_image_are_limited_too():
    lazy = Image.new("1", (8000, 7000))
    assert "8000 x 7000" in refusal(lazy, ResourceLimitError)
    assert "at least one pixel" in refusal(Image.new("RGB", (0, 5)), ImageInputError)


def test_an_extreme_side_is_refused_and_a_long_strip_is_read():
    assert "max_side" in refusal(np.zeros((1, 65535, 3), np.uint8), ResourceLimitError, channel_order="HWC")
    assert open_image(np.zeros((1, 30_000), np.uint8)).size_hw == (1, 30_000)


# Paths.


def test_paths_that_are_no_files_are_refused_at_once(tmp_path):
    fifo, broken, bound = tmp_path / "fifo", tmp_path / "broken", tmp_path / "socket"
    os.mkfifo(fifo)
    broken.symlink_to(tmp_path / "nowhere")
    start = time.monotonic()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bound))
        assert "is a pipe, device or socket" in refusal(bound, ImageInputError)
    assert "is a directory" in refusal(tmp_path, ImageInputError)
    assert "is a pipe, device or socket" in refusal(fifo, ImageInputError)
    assert "is a pipe, device or socket" in refusal("/dev/zero", ImageInputError)
    assert "no such file" in refusal(broken, ImageInputError)
    assert "no such file" in refusal("nowhere.png", ImageInputError)
    assert "not a path" in refusal("a\0b.png", ImageInputError)
    assert "\ud800" not in refusal("\ud800.png", ImageInputError)
    assert "cannot be read" in refusal("x" * 5000, ImageInputError)
    assert "no such file" in refusal("", ImageInputError)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "cannot be read" in refusal(loop, ImageInputError)
    assert time.monotonic() - start < 30  # it ends; how soon is for the machine to say


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(PNG)

    def denied(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", denied)  # the superuser may read everything, so the system says no here
    assert refusal(path, ImageInputError) == f"{path}: cannot be read: Permission denied."


def test_a_symlink_to_a_picture_is_followed(tmp_path):
    (tmp_path / "real.png").write_bytes(PNG)
    (tmp_path / "link").symlink_to("real.png")
    assert np.array_equal(open_image(tmp_path / "link").pixels, PIXELS)


def test_file_objects_that_are_no_image_files_are_refused():
    assert "binary mode" in refusal(io.StringIO("text"), ImageInputError)
    assert "empty" in refusal(io.BytesIO(), ImageInputError)
    closed = io.BytesIO(PNG)
    closed.close()
    assert "cannot be read" in refusal(closed, ImageInputError)


def test_no_source_may_exceed_the_bytes_allowed(tmp_path):
    small = Limits(max_file_bytes=len(PNG) - 1)
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in (PNG, io.BytesIO(PNG), path, memoryview(PNG)):
        assert "max_file_bytes" in refusal(source, ResourceLimitError, limits=small)
    assert open_image(PNG, limits=Limits(max_file_bytes=len(PNG))).size_hw == (6, 9)
    with open("/dev/zero", "rb") as endless:
        assert "max_file_bytes" in refusal(endless, ResourceLimitError, limits=small)


@pytest.mark.parametrize("source", [None, 3, [PIXELS], {"image": PNG}, object()])
def test_what_is_no_image_is_refused_by_its_type(source):
    assert f"got {type(source).__name__}" in refusal(source, ImageInputError)


def test_urls_are_refused_unless_allowed():
    for url in (
        "http://user:secret@host/a.png?token=secret",
        "https://host/a.png",
        "file:///etc/passwd",
        "data:,x",
    ):
        message = refusal(url, ImageInputError)
        assert "allow_urls=True" in message and "secret" not in message
    assert "expected an http, https or data URL" in refusal("file:///etc/passwd", ImageInputError, allow_urls=True)


def test_a_data_url_is_read_where_urls_are_allowed():
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    picture = open_image(url, allow_urls=True)
    assert np.array_equal(picture.pixels, PIXELS)
    assert picture.name == "data:…"


def test_names_in_messages_are_printable_and_short():
    message = refusal("evil\n\x1b[31m‮" + "x" * 900, ImageInputError)
    assert message.isprintable() and len(message) < 300
    assert "\\n\\x1b[31m\\u202e" in message


@pytest.mark.parametrize("background", [(1, 2), (0, 0, 256), (0.0, 0, 0), (-1, 0, 0)])
def test_a_background_is_three_bytes(background):
    assert "background" in refusal(PNG, ImageInputError, background=background)


# Promises.


@pytest.mark.parametrize("place", range(8))
def test_one_bad_image_of_eight_leaves_the_others_as_they_are(place):
    good = [encoded(Image.new("RGB", (4, 4), (i, i, i))) for i in range(8)]
    clean = [open_image(data) for data in good]
    damaged = [*good[:place], good[place][:30], *good[place + 1 :]]
    read, errors = [], []
    for index, data in enumerate(damaged):
        try:
            read.append(open_image(data, name=f"image {index}"))
        except ImageInputError as exc:
            errors.append(str(exc))
    assert read == clean[:place] + clean[place + 1 :]
    assert len(errors) == 1 and errors[0].startswith(f"image {place}: ")


def test_the_gate_leaves_pillow_as_it_was():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    open_image(PNG, limits=Limits(max_pixels=10**9))
    refusal(bomb(9000, 9000), ResourceLimitError)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_the_gate_loads_no_framework():
    script = "import sys, mm.images; print([m for m in ('torch', 'transformers', 'timm') if m in sys.modules])"
    root = pathlib.Path(__file__).parent.parent
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr
