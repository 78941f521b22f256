"""llama.cpp cuts texts as XLM-R's and T5's tokenizers do, from the file that we write."""

from dataclasses import replace

import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from research.interop.convert import convert
from research.interop.load import open_checkpoint
from tests.families import FAMILIES
from tests.interop.test_gguf_encoders import write
from tests.interop.test_gguf_unigram import KINDS, NASTY, as_json


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_nasty_texts_are_llama_cpps(kind, tmp_path):
    c = replace(FAMILIES["bert_base"], pooler=False, mlm_head=False, vocab_size=170)
    folder = write(c, tmp_path / "hf", as_json(kind, tmp_path / "source"))
    convert(folder, tmp_path / "gguf", "gguf", certified=False)
    path = str(tmp_path / "gguf/model.gguf")
    theirs = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    with open_checkpoint(tmp_path / "gguf") as checkpoint:
        ours = checkpoint.tokenizer
    for text in NASTY:
        if "\0" not in text:  # ends a string there
            got = theirs.tokenize(text.encode(), add_bos=False, special=True)
            # llama.cpp adds T5's end where the file says so, whoever asks.
            assert [n for n in got if n != ours.eos_id or "</s>" in text] == ours.encode(text), text
