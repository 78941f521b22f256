"""Records with media from lines, shards and folders: their places and media are as many, broken
ones are left out with their record, and rows hold whole media, the same at every reading."""

import base64
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from research.data.files import FileDocuments
from research.data.media.soft_tokens import SoftTokens
from research.data.media_records import media_of, read_media
from research.data.media_windows import caption_windows, media_windows
from research.data.tokenizers import load_tokenizer
from research.data.tokens import BadRecords
from research.data.windows import WindowOptions

Image = pytest.importorskip("PIL.Image", reason="pictures are decoded by Pillow, extra [media]")

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
SOFT = SoftTokens(size=4, tokens=3, token=300)


def png(red: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(out, "PNG")
    return out.getvalue()


def asks(*contents, **more):
    turns = [{"role": role, "content": c} for role, c in zip(("user", "assistant") * 9, contents)]
    return {"messages": turns, **more}


def options(tmp_path, **changes) -> WindowOptions:
    tokenizer = replace(load_tokenizer("bytes"), chat_template=TEMPLATE)
    made = WindowOptions(tokenizer, tmp_path / "cache", length=40, soft=SOFT, max_bad_records=1)
    return replace(made, **changes)


def written(folder, records):
    for red in range(5):
        (folder / f"{red}.png").write_bytes(png(red))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "records.jsonl").write_text(lines)
    return FileDocuments(folder / "records.jsonl", "", folder / "cache", "media")


URL = "data:image/png;base64," + base64.b64encode(png(3)).decode()


@pytest.mark.parametrize(
    "record",
    [
        {"image": "3.png", "text": "three"},
        asks("<image>What?", "three", image="3.png"),
        asks("What?", "three", images=["3.png"]),
        asks([{"type": "image", "image": "3.png"}, {"type": "text", "text": "What?"}], "three"),
        asks([{"type": "image"}, {"type": "text", "text": "What?"}], "three", images=["3.png"]),
        asks([{"type": "image_url", "image_url": {"url": URL}}], "three"),
        asks("<image>", "three", image={"bytes": png(3), "path": "3.png"}),
    ],
)
def test_all_spellings_of_a_picture_give_the_same_medium(record):
    columns = {"messages": "messages"} if "messages" in record else {"text": "text"}
    [text] = read_media(record, columns).values()
    kinds = [part["type"] for message in json.loads(text) for part in message["content"]]
    assert kinds.count("image") == 1 and kinds[-1] == "text"
    [medium] = media_of(record, columns, Path("/data"))
    assert medium.kind == "image"
    assert medium.source == png(3) or medium.source.as_posix() == "/data/3.png"


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (asks("<image> and <image>", "two", image="3.png"), "2 places for image and 1 image"),
        (asks("<image>", "two", images=["3.png", "4.png"]), "1 places for image and 2 image"),
        (asks("What?", "nothing"), "it has no image, audio or video"),
        (asks("<image>", "one", image="https://a.b/c.png"), "nothing is fetched"),
        (asks("<image>", "one", image=3), "a medium is int, wanted a path or bytes"),
        (asks("<image>", "one", image="data:image/png,abc"), "is no data URL"),
    ],
)
def test_places_without_media_and_the_other_way_round_are_refused(record, line):
    with pytest.raises(ValueError, match=line):
        read_media(record, {"messages": "messages"})


def test_rows_hold_whole_pictures_in_the_order_of_their_places(tmp_path):
    records = [asks("<image>?", f"{red}", image=f"{red}.png") for red in (1, 2)]
    records += [asks("<image><image>", "34", images=["3.png", "4.png"])]
    windows = media_windows(written(tmp_path, records), options(tmp_path))
    [first] = [windows[i] for i in range(len(windows))]
    segments, soft = first["segments"], first["tokens"] == SOFT.token
    assert first["images"].shape == (40 // 3, 4, 4, 3)
    # The longest conversation first, and black behind.
    assert first["images"][:, 0, 0, 0].tolist()[:5] == [3, 4, 1, 2, 0]
    assert [int((soft & (segments == n)).sum()) for n in (1, 2, 3)] == [6, 3, 3]
    assert not (first["assistant"] & soft).any()
    again = media_windows(written(tmp_path, records), options(tmp_path))[0]
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])


def test_a_cut_leaves_no_part_of_a_picture(tmp_path):
    record = asks("<image>", "one", "<image>", "two", images=["1.png", "2.png"])
    whole = media_windows(written(tmp_path, [record]), options(tmp_path))
    ids = whole[0]["tokens"]
    second = np.flatnonzero(ids == SOFT.token)[3]
    for length in (second + 1, second + 2):
        window = media_windows(written(tmp_path, [record]), options(tmp_path, length=length))[0]
        assert (window["tokens"] == SOFT.token).sum() == 3
        assert window["images"][:2, 0, 0, 0].tolist()[:1] == [1] and not window["images"][1:].any()
        assert (window["segments"] > 0).sum() == second


def test_broken_pictures_are_left_out_with_their_record_and_counted(tmp_path, caplog):
    records = [asks("<image>", "x", image=f"{n}.png") for n in range(4)]
    documents = written(tmp_path, records)
    (tmp_path / "1.png").write_bytes(b"")
    # Well in its header, broken within: no loss, and black.
    (tmp_path / "2.png").write_bytes(png(2)[:-30])
    windows = media_windows(documents, options(tmp_path))
    window = windows[0]
    assert "left out records.jsonl:1, record 1: image 0 (" in caplog.text
    assert "1.png): it is empty" in caplog.text
    assert "no loss on records.jsonl:2: image: its pixels cannot be read" in caplog.text
    assert window["images"][:4, 0, 0, 0].tolist() == [0, 0, 3, 0]
    assert [int(window["assistant"][window["segments"] == n].any()) for n in (1, 2, 3)] == [1, 0, 1]
    assert len(windows.stores[0].bad_records) == 1
    (tmp_path / "3.png").unlink()
    with pytest.raises(BadRecords, match="no such file.*unreadable record 2, 1 allowed"):
        media_windows(written_again(tmp_path, records), options(tmp_path))


def written_again(folder, records):
    """The same records under another name, whose media are looked at anew."""
    (folder / "more.jsonl").write_text((folder / "records.jsonl").read_text() + "\n")
    return FileDocuments(folder / "more.jsonl", "", folder / "cache", "media")


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("b/9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)


def test_samples_of_a_shard_keep_their_order_and_nothing_is_unpickled(tmp_path):
    members = [("b/7.png", png(7)), ("b/7.txt", b"seven\n"), ("b/7.pkl", b"cos\nsystem\n")]
    members += [("a/2.json", b'{"text": "two"}'), ("a/2.png", png(2)), ("README", b"no sample")]
    shard(tmp_path / "s.tar", members)
    documents = FileDocuments(tmp_path / "s.tar", "", tmp_path / "cache", "captions")
    assert [documents[n]["text"] for n in range(len(documents))] == ["seven", "two"]
    windows = caption_windows(documents, options(tmp_path, length=8))
    assert [windows[n]["images"][0, 0, 0, 0] for n in range(2)] == [7, 2]
    # Ended like any text: a picture's name is all there is.
    assert windows[1]["tokens"][1:4].tolist() == [*b"two"] and windows[1]["segments"].sum() == 5


def test_a_folder_of_pictures_with_captions_is_data_and_says_what_it_leaves_out(tmp_path, caplog):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for red in range(3):
        (folder / f"{red}.png").write_bytes(png(red))
        (folder / f"{red}.txt").write_text(f"number {red}")
    (folder / "2.txt").unlink()
    documents = FileDocuments(folder, "", tmp_path / "cache", "captions")
    assert [documents[n]["text"] for n in range(len(documents))] == ["number 0", "number 1"]
    assert "passed over 1 of 5 files: 2.png (other columns)" in caplog.text
    conversations = FileDocuments(folder, "", tmp_path / "cache", "media")
    windows = media_windows(conversations, options(tmp_path))
    assert [int(windows[n]["images"][0, 0, 0, 0]) for n in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="set config.model.image"):
        caption_windows(documents, options(tmp_path, soft=None))
