"""The bytes that each token of a tokenizer stands for, which its `decode` does not tell of parts of
a letter."""

import sentencepiece

from research.data.tokenizers import sentencepiece as pieces_of
from research.data.tokenizers.byte import spelt_bytes
from research.data.tokenizers.tokenizer import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> tuple[list[bytes], list[int]]:
    """(the bytes of each id, ids of the special tokens) of the kinds "bytes" and "sentencepiece".
    ValueError for another kind."""
    if tokenizer.kind == "bytes":
        return spelt_bytes()
    if tokenizer.kind == "sentencepiece":
        content = tokenizer.files[pieces_of.FILE]
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        return pieces_of.spelt_bytes(model, tokenizer)
    raise ValueError(
        f"the bytes of tokens are not known of a tokenizer of the kind {tokenizer.kind!r}; take one "
        "of 'huggingface', 'sentencepiece' or 'bytes'"
    )
