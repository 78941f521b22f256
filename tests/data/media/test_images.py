"""Pictures as records have them: what is decoded, what is done to it, and what is refused before
any of it is decoded."""

import io
import struct
import zlib

import numpy as np
import pytest

from research.data.media.images import inspect_image, read_image
from research.data.media.limits import BadMedia, Limits
from research.data.media.resize import resized
from research.data.media.video import chosen_frames, read_video

Image = pytest.importorskip("PIL.Image", reason="pictures are decoded by Pillow, extra [media]")

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)


def encoded(image, form="PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


PICTURE = Image.fromarray(PIXELS)
ANIMATED = encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)])
SIXTEEN = encoded(Image.fromarray(np.full((4, 4), 65535, np.uint16)))
CLEAR = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))


def test_a_png_is_read_as_it_was_written_and_a_turned_one_upright():
    picture = read_image(encoded(PICTURE))
    assert picture.notes == ()
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    upright = read_image(encoded(PICTURE, exif=turned)).pixels
    np.testing.assert_array_equal(upright, PIXELS[::-1, ::-1])


@pytest.mark.parametrize(
    ("data", "note", "value"),
    [
        (ANIMATED, "animated", None),
        (encoded(PICTURE.convert("CMYK"), "JPEG"), "CMYK", None),
        (SIXTEEN, "more than 8 bits", 255),
        (CLEAR, "transparent", 255),
        (encoded(PICTURE.convert("L")), None, None),
    ],
)
def test_other_kinds_become_8_bit_rgb_and_say_so_by_their_header(data, note, value):
    notes = inspect_image(data)
    assert [note in line for line in notes] == [True] * (note is not None)
    picture = read_image(data)
    assert picture.notes == notes and picture.pixels.dtype == np.uint8
    assert picture.pixels.shape[2] == 3
    assert value is None or (picture.pixels == value).all()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "it is empty"),
        (b"no picture", "it is no picture that can be read"),
        (encoded(PICTURE)[:30], "it is no picture that can be read"),
        (encoded(Image.new("1", (300, 300))), "would have 300 x 300 pixels"),
        (encoded(PICTURE) + bytes(5000), "it has .* bytes, over the 5,000"),
    ],
)
def test_what_is_no_picture_or_too_large_is_refused_by_its_header(data, line):
    limits = Limits(pixels=10_000, file_bytes=5_000)
    with pytest.raises(BadMedia, match=line):
        inspect_image(data, limits)


def test_a_bomb_is_not_decoded():
    # The header of a small file, which says that it is 1.2 GB of pixels.
    data = encoded(PICTURE)
    head = data[12:16] + struct.pack(">2I", 20000, 20000) + data[24:29]
    bomb = data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    with pytest.raises(BadMedia, match="400000000|20000 x 20000"):
        read_image(bomb)


def test_a_picture_that_is_cut_off_is_found_when_it_is_decoded():
    cut = encoded(PICTURE)[:-600]
    assert inspect_image(cut) == ()
    with pytest.raises(BadMedia, match="its pixels cannot be read"):
        read_image(cut)


@pytest.mark.parametrize("form", ["siglip", "clip"])
def test_every_shape_becomes_the_square_that_the_encoder_reads(form):
    whole = resized(PIXELS, 16, form)
    assert whole.shape == (16, 16, 3)
    # The middle of a picture that is wider than high, or all of it.
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = 200
    assert (resized(wide, 16, form)[:, 0] == 200).all() == (form == "clip")


def test_frames_of_a_folder_are_taken_at_equal_distances(tmp_path):
    for number in range(9):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    frames, notes = read_video(tmp_path, 3)
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 4, 8] and not notes
    _, notes = read_video(tmp_path, 12)
    assert "its last one is repeated" in notes[0]
    assert chosen_frames(5, 5) == [0, 1, 2, 3, 4]
    (tmp_path / "4.png").write_bytes(b"broken")
    with pytest.raises(BadMedia, match=r"frame 4\.png: it is no picture"):
        read_video(tmp_path, 3)


def test_a_video_file_gives_its_frames_and_a_cut_one_those_before_the_cut():
    av = pytest.importorskip("av", reason="videos are decoded by PyAV, extra [media]")
    out = io.BytesIO()
    with av.open(out, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for level in (0, 60, 120, 180, 240):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, notes = read_video(out.getvalue(), 3)
    # Lossy: levels are met to a few of 255.
    np.testing.assert_allclose([f.mean() for f in frames], [0, 120, 240], atol=8)
    assert not notes
    data = out.getvalue()
    begins, ends = data.index(b"movi"), data.index(b"idx1")
    frames, notes = read_video(data[: (begins + 2 * ends) // 3], 3)
    assert len(frames) == 3 and "cut off" in " ".join(notes)
    with pytest.raises(BadMedia, match="no frame of it can be decoded"):
        read_video(b"RIFF" + bytes(100), 3)
