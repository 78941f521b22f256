"""Files read past the system's cache: the same bytes, and nothing of them in the cache
afterwards."""

import errno
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from research import tree
from research.interop.load import load
from research.interop.storage import direct
from research.interop.storage.safetensors import open_safetensors
from tests.interop.golden import write

CONTENT = np.random.default_rng(0).integers(0, 256, 5_000_003, np.uint8)


def cached(path, offset=0, size=CONTENT.size):
    """True if all these bytes are in the cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        return direct._in_cache(file, offset, size)
    finally:
        os.close(file)


def forget(path):
    """Drops a file from the cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


@pytest.fixture
def path(tmp_path):
    """A file that is on the disk alone."""
    path = tmp_path / "content"
    CONTENT.tofile(path)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        forget(path)
        if cached(path, 4_500_000, 1):
            pytest.skip("the file system of temporary files has no disk")
    except (AttributeError, OSError) as error:
        pytest.skip(f"no reads past the cache here: {error}")
    return path


# More than what is read at once, and an end within a page.
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1), (1, 4095), (4095, 4098), (3, 5_000_000), (4_999_999, 9)]
)
def test_bytes_are_those_of_the_file_and_stay_out_of_the_cache(path, offset, size):
    memory = np.zeros(size, np.uint8)
    want = CONTENT[offset : offset + size]
    assert direct.fill_once(path, offset, memory) == want.size
    np.testing.assert_array_equal(memory[: want.size], want)
    assert not memory[want.size :].any()
    assert not cached(path, min(offset, 4_900_000), 1)


def test_what_is_in_the_cache_is_left_to_a_plain_read(path):
    path.read_bytes()
    assert cached(path)
    assert direct.fill_once(path, 5, np.empty(3_000_000, np.uint8)) == 0


def test_what_is_partly_in_the_cache_is_read_from_the_disk(path):
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        file.read(8192)
    assert cached(path, 0, 8192) and not cached(path, 1, 100_000)
    memory = np.empty(100_000, np.uint8)
    assert direct.fill_once(path, 1, memory) == memory.size
    np.testing.assert_array_equal(memory, CONTENT[1:100_001])


@pytest.fixture
def always(monkeypatch):
    """Every file is large enough."""
    monkeypatch.setattr(direct, "_SHARE", 2**60)


def test_where_the_file_system_has_no_such_reads_a_plain_one_takes_over(
    tmp_path, always, monkeypatch
):
    save_file({"a": CONTENT}, tmp_path / "model.safetensors")
    asked = []

    def refuse(file, offset, memory):
        asked.append(offset)
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(direct, "_in_cache", lambda file, offset, size: False)
    monkeypatch.setattr(direct, "_fill", refuse)
    memory = np.empty(1000, np.uint8)
    open_safetensors(tmp_path).fill("a", 7, memory, once=True)
    assert len(asked) == 1
    np.testing.assert_array_equal(memory, CONTENT[7:1007])


def test_a_file_that_was_cut_short_is_refused(tmp_path, always):
    save_file({"a": CONTENT}, tmp_path / "model.safetensors")
    opened = open_safetensors(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 4_000_000)
    with pytest.raises(ValueError, match="ends .* bytes early; fetch it again"):
        opened.fill("a", 0, np.empty(CONTENT.size, np.uint8), once=True)


def test_a_model_is_the_same_past_the_cache(tmp_path, always, monkeypatch):
    folder, used = write("llama_gqa", tmp_path), []
    fill = direct.fill_once
    monkeypatch.setattr(direct, "fill_once", lambda *given: used.append(given) or fill(*given))
    through = tree.paths(load(folder).params)
    assert used
    monkeypatch.setattr(direct, "_SHARE", 0)
    used.clear()
    plain = tree.paths(load(folder).params)
    assert not used
    for name, x in plain.items():
        np.testing.assert_array_equal(through[name], x)


def test_only_large_files_of_one_process_are_read_past_the_cache(monkeypatch):
    if direct._DIRECT is None:
        pytest.skip("no reads past the cache on this system")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert direct.pays(memory // 8 + 4096) and not direct.pays(memory // 8 - 4096)
    # Processes of one machine may read the same files, and then the cache reads them once.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert not direct.pays(memory)
