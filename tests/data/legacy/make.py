"""Writes golden.json: folders of older kinds of tokenizers, and what transformers makes of
them. From the root: python tests/data/legacy/make.py

Wanted: `pip install transformers sentencepiece`, no torch. Vocabularies are tiny and made here; the
file holds them, so that the tests train nothing.
"""

import base64
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, trainers

FILE = Path(__file__).with_name("golden.json")
TEXTS = [
    "",
    " ",
    "Hello world, it's 2024!",
    " leading and trailing  ",
    "two  spaces\tand\n\nlines\r\n",
    "Ｆｕｌｌ ｗｉｄｔｈ ﬁne café naïve cafe\u0301",
    "日本語 and 中文，mixed",
    "emoji 👩‍👩‍👧 and \u200bzero\ufeff width",
    "<s>sp</s> <mask> x<mask>y <pad><unk>",
    "[CLS] a [MASK] b[SEP]",
    "<|endoftext|>a<|im_start|> b <|im_end|>\n",
    "<extra_id_0> a<extra_id_1>b <extra_id_3>",
    ">>de<< Hello >>fr<< x",
    "▁a ▁▁ b",
    "naïve İstanbul ΣΊΣΥΦΟΣ",
    "a" * 120,
]
CORPUS = [
    "Hello world, it's a fine day; the world is full of lines and spaces.",
    "naive cafes mix leading and trailing words, two spaces, zero width and emoji.",
    "The day of the week is 2024, and lines are mixed with words of the world.",
    "日本語 and 中文",
] * 8


def byte_level(more=()):
    """{vocab.json, merges.txt} of a byte-level BPE, with further tokens at the end."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    model = json.loads(backend.to_str())["model"]
    vocab = model["vocab"] | {token: len(model["vocab"]) + n for n, token in enumerate(more)}
    merges = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
    return {"vocab.json": json.dumps(vocab, ensure_ascii=False), "merges.txt": merges}


def unigram(size, first, corpus=CORPUS, **options):
    """The bytes of a sentencepiece model of kind Unigram; the special pieces are `first`, in
    order. Its normalizer replaces a few characters, as T5's does many."""
    roles = {f"{role}_id": -1 for role in ("pad", "bos", "eos")}
    roles |= {f"{role}_id": n for n, role in enumerate(first)}
    written = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        for source, target in (("ﬁ", "fi"), ("Ｆ", "F"), ("　", " "), ("\t", " "), ("\u200b", "")):
            spell = [" ".join(f"{ord(c):X}" for c in text) for text in (source, target)]
            rules.write("\t".join(spell) + "\n")
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=written,
            vocab_size=size,
            model_type="unigram",
            normalization_rule_tsv=rules.name,
            hard_vocab_limit=False,
            minloglevel=2,
            **roles,
            **options,
        )
    return written.getvalue()


def bert():
    words = (
        "hello world it ' s 2024 ! , naive cafe café ##s ##ing two spaces a b i 日 本 语 中 ##文"
    )
    words += " Hello ΣΊΣΥΦΟΣ istanbul full width lead ##er emoji x y ##1 日本語 tr"
    letters = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"] + list("cdefghjklmnopqrstuvwz")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words.split(), *letters]
    return "".join(f"{token}\n" for token in dict.fromkeys(tokens))


def marian():
    """One vocabulary of two models' pieces, as Marian trains it."""
    other = [line.replace("th", "d").replace("w", "v").title() for line in CORPUS]
    sides = (("source", CORPUS), ("target", other))
    models_ = {name: unigram(90, ["unk"], corpus) for name, corpus in sides}
    pieces = ["</s>", "<unk>", ">>de<<", ">>fr<<"]
    for content in models_.values():
        one = sentencepiece.SentencePieceProcessor(model_proto=content)
        # The last ones are left out, so that a piece may lack an id.
        pieces += [one.id_to_piece(n) for n in range(one.vocab_size() - 5)]
    pieces = [*dict.fromkeys(p for p in pieces if p not in ("<s>",)), "<pad>"]
    vocab = {piece: n for n, piece in enumerate(pieces)}
    files = {f"{name}.spm": content for name, content in models_.items()}
    return files | {"vocab.json": json.dumps(vocab, ensure_ascii=False)}


def flags(content, special=True, **more):
    base = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, **base, **more, "special": special}


def folders():
    """{case: {file: content}}"""
    gpt2, qwen = byte_level(["<|endoftext|>"]), byte_level()
    roberta = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    spiece = unigram(120, ["pad", "eos", "unk"], user_defined_symbols="<de>")
    fairseq = unigram(120, ["unk", "bos", "eos"])
    mask = {k: v for k, v in flags("<mask>", lstrip=True).items() if k != "special"}
    count = len(json.loads(qwen["vocab.json"]))
    chatml = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    decoder = {str(count + n): flags(token) for n, token in enumerate(chatml)}
    decoder[str(count + 3)] = flags("two", special=False, single_word=True, rstrip=True)
    return {
        "gpt2": {**gpt2, "config.json": {"model_type": "gpt2"}},
        "gpt2_added": {
            **gpt2,
            "tokenizer_config.json": {
                "tokenizer_class": "GPT2TokenizerFast",
                "add_prefix_space": True,
                "add_bos_token": True,
                "pad_token": "<pad>",
            },
            "special_tokens_map.json": {
                "eos_token": "<|im_end|>",
                "additional_special_tokens": ["<|im_start|>", "<mask>"],
            },
            "added_tokens.json": {"<|im_end|>": 331, "two": 332, "<|im_start|>": 333},
        },
        "roberta": {
            **roberta,
            "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"},
            "special_tokens_map.json": {"mask_token": mask, "bos_token": "<s>"},
        },
        "qwen2": {
            **qwen,
            "tokenizer_config.json": {
                "tokenizer_class": "Qwen2Tokenizer",
                "added_tokens_decoder": decoder,
                "eos_token": "<|im_end|>",
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            },
            "added_tokens.json": {"never": 999},
        },
        "gpt_neox": {**gpt2, "config.json": {"model_type": "gpt_neox"}},
        "bert": {"vocab.txt": bert(), "config.json": {"model_type": "bert"}},
        "bert_cased": {
            "vocab.txt": bert(),
            "tokenizer_config.json": {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": False,
                "tokenize_chinese_chars": False,
            },
        },
        "bert_accents": {
            "vocab.txt": bert(),
            "tokenizer_config.json": {
                "tokenizer_class": "DistilBertTokenizerFast",
                "strip_accents": False,
                "cls_token": "tr",
                "mask_token": {"__type": "AddedToken", **flags("[MASK]", lstrip=True)},
            },
        },
        "t5": {"spiece.model": spiece, "config.json": {"model_type": "t5"}},
        "mt5": {
            "spiece.model": spiece,
            "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 2},
        },
        "xlm_roberta": {
            "sentencepiece.bpe.model": fairseq,
            "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer"},
            "special_tokens_map.json": {"mask_token": mask},
        },
        "marian": {**marian(), "config.json": {"model_type": "marian"}},
        "json_named": {
            "tokenizer.json": backend_json(gpt2),
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|endoftext|>",
                "added_tokens_decoder": {
                    "330": flags("<|endoftext|>"),
                    "331": flags("<|im_end|>"),
                },
            },
        },
        "json_map": {
            "tokenizer.json": backend_json(gpt2),
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
            "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
            "added_tokens.json": {"<mask>": 331},
        },
    }


def backend_json(files):
    """A tokenizer.json of these files, without any added token."""
    vocab = json.loads(files["vocab.json"])
    merges = [tuple(line.split(" ")) for line in files["merges.txt"].splitlines()[1:]]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend.to_str()


def answers(folder):
    """What transformers makes of a folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("eos", "pad", "mask")}
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    made = {
        "ids": plain,
        "size": len(tokenizer),
        "roles": roles,
        "framed": tokenizer("a")["input_ids"],
    }
    if type(tokenizer).__name__ == "MarianTokenizer":
        made["targets"] = [
            tokenizer(text_target=text, add_special_tokens=False)["input_ids"] for text in TEXTS
        ]
    return made


def spelt(content):
    """A file's content as JSON: text, {"base64": ...} of bytes, or an object as its text."""
    if isinstance(content, bytes):
        return {"base64": base64.b64encode(content).decode()}
    return content if isinstance(content, str) else json.dumps(content)


def write(folder, files):
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else spelt(content).encode()
        (folder / name).write_bytes(raw)


def main() -> None:
    golden = {"transformers": transformers.__version__, "texts": TEXTS, "cases": {}}
    for name, files in folders().items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), files)
            made = answers(folder)
        contents = {file: spelt(content) for file, content in files.items()}
        golden["cases"][name] = {"files": contents, **made}
    FILE.write_text(json.dumps(golden, ensure_ascii=False, indent=None) + "\n")


if __name__ == "__main__":
    main()
