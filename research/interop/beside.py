"""What lies beside the tensors of a converted checkpoint, as the program that it was made for reads
it: ids of texts, rendered conversations, and the tokens that end a text.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.data.chat import TRAINING_DAY, render_chat
from research.data.tokenizers import Tokenizer
from research.interop.gguf import ends as gguf_ends
from research.interop.huggingface.reader import read_folder
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.generation import end_ids

# Where tokenizers disagree: spaces at edges and in runs, line ends, digits, accents in both Unicode
# forms, full-width letters, scripts without spaces, emoji of several characters, marks of no width,
# sentencepiece's own space, and what looks like special tokens.
TEXTS = (
    "Hello world, it's 2024!",
    " leading and trailing  ",
    "two  spaces\tand\n\nlines\r\n",
    "1234567 3.14 1e-5",
    "naïve café cafe\u0301 İstanbul ΣΊΣΥΦΟΣ",
    "Ｆｕｌｌ ｗｉｄｔｈ ﬁne",
    "日本語 and 中文，한국어 mixed",
    "emoji 👩‍👩‍👧 and \u200bzero\ufeff width",
    "<s>sp</s> <mask> x<|im_start|>y[CLS] z",
    "▁a ▁▁ b",
    "def f(x):\n    return x  # done",
    "Việt Nam ĐỒNG",
)
_CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": " What is 2 + 2? "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
)


def compare(source: Checkpoint, target: Checkpoint, folder: Path) -> dict[str, Any]:
    """How the reader of `target`, which was opened from `folder`, sees the rest of the checkpoint.

    Returns {"reader", "tokenizer", "template", "ends"}: of texts and of conversations how many were
    compared, how many are equal to the source's, and the first that is not; the ids that end a text
    on both sides, the tokenizer's own end among the source's. A part that the source lacks is None;
    "unread" says why one cannot be compared.
    """
    reader = _READERS[target.format]
    result: dict[str, Any] = {"reader": reader, "tokenizer": None, "template": None, "ends": None}
    try:
        ours = source.tokenizer
        theirs, ends = _read(target, folder)
    except ValueError as error:
        return result | {"unread": str(error)}
    if source.config.kind != "encoder":  # an encoder writes no text
        result["ends"] = {"source": sorted(_own_ends(source, ours)), "reader": ends}
    if ours is None or theirs is None:
        return result
    result["tokenizer"] = _texts(ours, theirs)
    if ours.chat_template is not None:
        result["template"] = _chats(ours, theirs)
    return result


_READERS = {"native": "this package", "hf": "transformers", "gguf": "llama.cpp"}


def _read(target: Checkpoint, folder: Path) -> tuple[Tokenizer | None, list[int]]:
    """(tokenizer, ends of a text) by the rules of the target's reader."""
    if target.format == "hf":
        tokenizer, ends = read_folder(folder)
    elif target.format == "gguf":
        tokenizer, ends = gguf_ends.as_llama_cpp(target)
    else:
        tokenizer = target.tokenizer
        ends = _own_ends(target, tokenizer)
    return tokenizer, sorted(ends)


def _own_ends(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> set[int]:
    """Where this package ends a text: at the ids that a checkpoint names and its tokenizer's."""
    own = tokenizer.eos_id if tokenizer is not None else None
    return {*end_ids(checkpoint.special), *([] if own is None else [own])}


def _texts(ours: Tokenizer, theirs: Tokenizer) -> dict[str, Any]:
    # Special tokens of the source itself, between words and alone.
    named = [n for n in (ours.bos_id, ours.eos_id, ours.pad_id, ours.mask_id) if n is not None]
    special = [ours.decode([n]) for n in dict.fromkeys(named)]
    texts = [*TEXTS, *(f"a {token}b {token}\n{token}" for token in special)]
    before, after = (one.encode_batch(texts) for one in (ours, theirs))
    return _counted([(text, a, b) for text, a, b in zip(texts, before, after)])


def _chats(ours: Tokenizer, theirs: Tokenizer) -> dict[str, Any]:
    rendered = []
    for messages in _CHATS:
        for prompt in (False, True):
            pair = [_render(one, messages, prompt) for one in (ours, theirs)]
            rendered.append((messages[-1]["content"], *pair))
    return _counted(rendered)


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]], prompt: bool) -> str:
    if tokenizer.chat_template is None:
        return ""
    # What no format but ours has a place for is compared without, and said by `lost`.
    plain = replace(tokenizer, template_variables={})
    try:
        return render_chat(plain, messages, add_generation_prompt=prompt, now=TRAINING_DAY)
    except ValueError as error:  # many templates refuse a system message
        return f"refused: {error}"


def _counted(rows: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    """How many of (what, before, after) are equal, and the first `what` that is not."""
    differing = [what for what, before, after in rows if before != after]
    counts = {"compared": len(rows), "equal": len(rows) - len(differing)}
    return counts | ({"first_differing": differing[0]} if differing else {})


def lost(source: Checkpoint, to: str) -> list[str]:
    """Lines on what beside the tensors the format `to` has no place for."""
    try:
        tokenizer = source.tokenizer
    except ValueError:
        return []
    if tokenizer is None or to == "native":
        return []
    told = _lost_scores(source, tokenizer) if to == "hf" else []
    if not tokenizer.template_variables:
        return told
    return [
        *told,
        f"the chat template was used with {dict(tokenizer.template_variables)}, which {to} has no "
        "place for; give them wherever the template is applied",
    ]


def _lost_scores(source: Checkpoint, tokenizer: Tokenizer) -> list[str]:
    """A line where transformers would read a text's score at another token than its last."""
    pad = source.special.get("pad_token_id", tokenizer.pad_id)
    if not source.config.scores_texts or pad not in (None, *_own_ends(source, tokenizer)):
        return []
    if pad is None:
        return ["there is no padding token, so transformers scores one text at a time"]
    return [
        f"token {pad} is padding and ends texts: transformers scores a text that ends in it at the "
        "token before; give it another pad_token_id"
    ]


def lines(beside: Mapping[str, Any]) -> list[str]:
    """What `compare` returned as lines for the terminal."""
    if "unread" in beside:
        return [f"not vouched for beside the tensors: {beside['unread']}"]
    told = []
    for name, what in (("tokenizer", "texts"), ("template", "conversations")):
        if (part := beside[name]) is not None:
            told.append(_line(beside["reader"], name, what, part))
    ends = beside["ends"] or {"source": [], "reader": []}
    if (mine := ends["source"]) != (theirs := ends["reader"]):
        told.append(f"{beside['reader']} ends a text at {theirs}, the source at {mine}")
    return told


def _line(reader: str, name: str, what: str, part: Mapping[str, Any]) -> str:
    if "first_differing" not in part:
        return f"{name}: {part['equal']} of {part['compared']} {what} are the same in {reader}"
    return (
        f"warning: {reader} reads the {name} otherwise: {part['compared'] - part['equal']} of "
        f"{part['compared']} {what} differ, the first {part['first_differing']!r}"
    )
