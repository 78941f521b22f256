"""What certificates say of the other side's reader is what that reader does: transformers' classes
over a tokenizer.json, and llama.cpp's ids and ends of a text."""

import json

import pytest

from research.data.tokenizers import load_tokenizer
from research.interop.beside import TEXTS
from research.interop.convert import convert
from research.interop.gguf.ends import as_llama_cpp
from research.interop.huggingface.reader import read_folder
from research.interop.load import open_checkpoint
from tests.data.chat_templates import TEMPLATES, tokenizer_json
from tests.data.test_legacy_tokenizers import CASES, GOLDEN, write
from tests.interop.test_beside import gguf_source

transformers = pytest.importorskip("transformers")
PAIRS = [
    ("gpt2", {"model_type": "gpt2"}, "GPT2Tokenizer"),
    ("gpt2_added", {"model_type": "gpt2"}, "PreTrainedTokenizerFast"),
    ("gpt2", {"model_type": "qwen2"}, "PreTrainedTokenizerFast"),
    ("gpt2", {"model_type": "gpt_neox"}, "GPTNeoXTokenizerFast"),
    ("gpt2", {"model_type": "mistral"}, "LlamaTokenizerFast"),
    ("gpt2", {"model_type": "llama"}, ""),
    ("gpt2", {"model_type": "llama"}, "GPT2Tokenizer"),
    ("roberta", {"model_type": "roberta"}, "RobertaTokenizerFast"),
    ("qwen2", {"model_type": "qwen3"}, "Qwen2Tokenizer"),
    ("bert_cased", {"model_type": "bert"}, "BertTokenizerFast"),
    ("bert_cased", {"model_type": "bert"}, ""),
    ("bert", {"model_type": "modernbert"}, "BertTokenizer"),
    ("t5", {"model_type": "t5"}, "T5TokenizerFast"),
    ("xlm_roberta", {"model_type": "xlm-roberta"}, "XLMRobertaTokenizer"),
]


@pytest.mark.parametrize(("case", "model", "kind"), PAIRS)
def test_a_tokenizer_json_is_read_as_autotokenizer_reads_it(case, model, kind, tmp_path):
    made = load_tokenizer(write(tmp_path / "old", CASES[case]["files"]))
    folder = tmp_path / "new"
    folder.mkdir()
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["tokenizer_class"]
    config = {name: value for name, value in config.items() if value is not None}
    config |= {"tokenizer_class": kind} if kind else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(model))
    texts = [*TEXTS, *GOLDEN["texts"]]
    wanted = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [wanted(text, add_special_tokens=False)["input_ids"] for text in texts]
    got = read_folder(folder)[0].encode_batch(texts)
    assert dict(zip(texts, got)) == dict(zip(texts, ids))


def test_llama_cpps_ids_and_ends_are_those_of_its_files(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    convert(gguf_source(tmp_path / "a"), tmp_path / "b", "gguf")
    model = llama_cpp.Llama(str(tmp_path / "b/model.gguf"), vocab_only=True, verbose=False)
    with open_checkpoint(tmp_path / "b") as checkpoint:
        tokenizer, ends = as_llama_cpp(checkpoint)
    texts = [*TEXTS, "a</s>b <|im_end|>\n"]
    assert tokenizer.encode_batch(texts) == [
        model.tokenize(text.encode(), add_bos=False, special=True) for text in texts
    ]
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    count = llama_cpp.llama_vocab_n_tokens(vocab)
    theirs = [n for n in range(count) if llama_cpp.llama_vocab_is_eog(vocab, n)]
    assert sorted(ends) == theirs
    assert model.metadata["tokenizer.chat_template"] == TEMPLATES["chatml"]["plain"]
    assert len(tokenizer_json()["added_tokens"]) > len(theirs)
