"""The works that a card is judged by: training, QLoRA, experts and decoding, and the products and
attention below them."""

from dataclasses import dataclass

OURS = "graft"
# A kernel of ours for few rows of a quantized weight, which is no default until a card timed it.
FEW = "few"


@dataclass(frozen=True)
class Work:
    """What a contender does in one call, at the sizes of a card.

    kind    "train", "decode", "prefill", "product", "grouped" or "attention"; see `card_contender`
    preset  the shape of the model, of which `layers` are taken; of a kernel its sizes
    rows, tokens   texts at once and their tokens; of decoding the tokens of prompt and continuation
    format  of quantized weights, which "train" puts adapters on; "" for none
    peers   who else does it, of `research.bench.card.PEERS`
    variants   what else of ours does it: names of kernels, or `FEW`
    documents  of equal length in a row, where the program is told how many
    window, head_size   those of the preset where they are 0
    backward   whether gradients are computed too
    quick   whether --quick has it
    """

    kind: str
    preset: str = "llama3_8b"
    layers: int = 32
    rows: int = 1
    tokens: int = 2048
    format: str = ""
    peers: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    documents: int = 0
    window: int = 0
    head_size: int = 0
    backward: bool = True
    quick: bool = False


MODELS = {
    # All parameters with AdamW are 12 bytes each: 32 layers would not fit a card of 80 GB.
    "train": Work("train", layers=8, tokens=8192, peers=("transformers",), quick=True),
    "train-2": Work("train", layers=6, rows=2, tokens=8192),
    "train-small": Work("train", "smollm2_135m", layers=30, rows=16, tokens=1024),
    "qlora": Work("train", format="nf4", peers=("peft", "unsloth"), quick=True),
    "qlora-4": Work("train", rows=4, format="nf4", peers=("peft", "unsloth")),
    # Two layers of Mixtral show what grouped products cost; 32 are 47 billion parameters.
    "experts": Work("train", "mixtral_8x7b", layers=2, tokens=4096),
    # 512 tokens are read and 128 written.
    "decode-1": Work("decode", tokens=512 + 128, peers=("transformers",), quick=True),
    "decode-1-nf4": Work("decode", tokens=512 + 128, format="nf4", variants=(FEW,), quick=True),
    "decode-1-int4": Work("decode", tokens=512 + 128, format="int4", variants=(FEW,)),
    "decode-1-int8": Work("decode", tokens=512 + 128, format="int8", variants=(FEW,)),
    "decode-8": Work("decode", rows=8, tokens=512 + 128, peers=("transformers",)),
    "decode-8-nf4": Work("decode", rows=8, tokens=512 + 128, format="nf4", variants=(FEW,)),
    "prefill": Work("prefill", rows=8, tokens=512, peers=("transformers",)),
    "prefill-nf4": Work("prefill", rows=8, tokens=512, format="nf4"),
}


def _product(tokens: int, format: str, backward: bool) -> Work:
    few = (FEW,) if format and tokens <= 8 else ()
    quick = not backward and tokens in (1, 4096) and format in ("", "nf4")
    return Work(
        "product", tokens=tokens, format=format, variants=few, backward=backward, quick=quick
    )


# A weight [4096, 14336], as in the table of `quantized_matmul_gpu.FASTEST`; at 4,096 rows also the
# gradient by them.
# With few tokens the weight's bytes bound the time, with 4,096 its products do: a format may win
# in one and lose in the other.
_SIZES = [(tokens, False) for tokens in (1, 8, 16, 512, 4096)] + [(4096, True)]
PRODUCTS = {
    f"product-{tokens}{'-back' if backward else ''}{f'-{format}' if format else ''}": _product(
        tokens, format, backward
    )
    for tokens, backward in _SIZES
    for format in ("", "nf4", "int8", "int4")
}
GROUPED = {
    "grouped": Work("grouped", "mixtral_8x7b", tokens=8192, variants=("xla",), backward=False),
    "grouped-back": Work("grouped", "mixtral_8x7b", tokens=8192, variants=("xla",)),
}


def _attention(tokens: int, rows: int = 2, **named) -> Work:
    return Work("attention", rows=rows, tokens=tokens, **named)


_NAMED = ("cudnn", "mosaic", "flash")
ATTENTION = {
    "attention": _attention(8192, variants=_NAMED, quick=True),
    "attention-forward": _attention(8192, variants=_NAMED, backward=False),
    "attention-8": _attention(8192, documents=8, variants=_NAMED, quick=True),
    "attention-8-forward": _attention(8192, documents=8, variants=_NAMED, backward=False),
    "attention-64": _attention(8192, documents=64, variants=_NAMED),
    "attention-window": _attention(8192, window=4096, variants=("mosaic", "xla"), quick=True),
    "attention-window-1024": _attention(8192, window=1024, variants=("mosaic", "xla")),
    "attention-head-64": _attention(8192, head_size=64, variants=_NAMED),
    "attention-32768": _attention(32768, rows=1, variants=("mosaic", "flash")),
    "attention-2048": _attention(2048, rows=1, variants=_NAMED),
}
WORKS = {**MODELS, **PRODUCTS, **GROUPED, **ATTENTION}
