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
        return _of_pieces(model, tokenizer)
    raise ValueError(
        f"the bytes of tokens are not known of a tokenizer of the kind {tokenizer.kind!r}; take "
        "one of 'huggingface', 'sentencepiece' or 'bytes'"
    )


def _of_pieces(
    model: sentencepiece.SentencePieceProcessor, tokenizer: Tokenizer
) -> tuple[list[bytes], list[int]]:
    """The same of a model with the tokens that the files beside it add."""
    every, special = list[bytes](), list[int]()
    for token_id in range(tokenizer.vocab_size):
        if token_id < model.vocab_size() and not model.is_control(token_id):
            text = pieces_of.spelt(model.id_to_piece(token_id))
            every.append(text if isinstance(text, bytes) else text.encode())
        else:
            special.append(token_id)
            every.append(tokenizer.decode([token_id]).encode())
    return every, special
