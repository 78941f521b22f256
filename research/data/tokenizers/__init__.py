"""Text to token ids and back: bytes, tokenizer.json, GPT-2 ranks and sentencepiece, loaded or
trained, and the files of older releases of transformers."""

from research.data.tokenizers.spelling import load_tokenizer as load_tokenizer
from research.data.tokenizers.spelling import train_tokenizer as train_tokenizer
from research.data.tokenizers.tokenizer import Tokenizer as Tokenizer
