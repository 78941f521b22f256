"""Models in several GGUF files, cut by the `gguf` package: read as the whole file is."""

import shutil

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from research import tree
from research.downloads import hub
from research.interop.contents import stored_types
from research.interop.convert import convert
from research.interop.load import load, open_checkpoint
from tests.interop.golden import write

PARTS = 3


def cut(file, folder):
    """Writes the parts of a GGUF file into a folder; their paths in order."""
    whole = GGUFReader(file)
    per = -(-len(whole.tensors) // PARTS)
    arch = whole.fields["general.architecture"].contents()
    writer = GGUFWriter(folder / "tiny.gguf", arch, split_max_tensors=per)
    for key, field in whole.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind, *inner = field.types
        inner = inner[0] if inner else None
        writer.add_key_value(key, field.contents(), kind, inner or GGUFValueType.UINT32)
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    theirs = folder / "theirs"
    theirs.mkdir()
    convert(write("llama_gqa", theirs), folder / "ours", "gguf", certified=False)
    return folder / "ours/model.gguf"


@pytest.fixture
def parts(whole, tmp_path):
    found = cut(whole, tmp_path)
    assert [path.name for path in found] == [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return found


def test_parts_are_the_whole_file_by_any_of_them_and_by_their_folder(whole, parts):
    want = tree.paths(load(whole).params)
    for source in (parts[0], parts[2], parts[0].parent):
        with open_checkpoint(source) as checkpoint, open_checkpoint(whole) as one:
            assert checkpoint.config == one.config
            assert checkpoint.source == parts[0]
        got = tree.paths(load(source).params)
        assert got.keys() == want.keys()
        for name, x in want.items():
            np.testing.assert_array_equal(got[name], x)
    assert stored_types(parts[0].parent) == stored_types(whole)


def test_a_part_that_is_missing_is_named(parts):
    parts[1].unlink()
    with pytest.raises(ValueError, match=r"tiny-00002-of-00003\.gguf is missing, one of 3 parts"):
        open_checkpoint(parts[0])


def test_parts_under_other_names_are_refused(parts):
    alone = parts[0].with_name("renamed.gguf")
    shutil.copy(parts[0], alone)
    with pytest.raises(ValueError, match="renamed.gguf is one of 3 parts by its split.count"):
        open_checkpoint(alone)


def test_parts_of_several_models_are_refused(parts):
    shutil.copy(parts[0], parts[1])
    with pytest.raises(ValueError, match="split.no=0 and split.count=3; wanted 1 and 3"):
        open_checkpoint(parts[0])


def test_a_folder_of_several_models_in_parts_is_refused_by_its_name(parts):
    shutil.copy(parts[0], parts[0].with_name("other.gguf"))
    with pytest.raises(ValueError, match="it is a folder of 4 GGUF files; give one"):
        open_checkpoint(parts[0].parent)


def test_all_parts_are_fetched_from_the_hub():
    names = [f"q4/tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    one = hub._Spelling("org/tiny", names[1], None)
    assert hub._needed("hf:org/tiny", one, [*names, "q8.gguf"], True) == names
    assert hub._ggufs([*names, "q8.gguf"]).endswith(f": {names[0]}, q8.gguf")
    # A repository of one model needs no file in its name.
    assert hub._needed("hf:org/tiny", hub._Spelling("org/tiny", "", None), names, True) == names
