"""Layouts: the kinds of records that objectives read. A new kind is one row of `LAYOUTS`.

records of a source --columns, read--> documents --windows--> windows of tokens
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from research.data.chat_records import read_conversation
from research.data.chat_windows import conversation_windows
from research.data.documents import Documents, UnreadableRecord
from research.data.judgement_windows import judgement_windows
from research.data.judgements import read_judgement
from research.data.labelled import labelled_windows
from research.data.media.kinds import KINDS
from research.data.media_records import MEDIA_COLUMNS, read_caption, read_media
from research.data.media_windows import caption_windows, media_windows
from research.data.packing import text_windows
from research.data.pairs import pair_windows
from research.data.preference_windows import preference_windows
from research.data.preferences import MARGIN, SIDES, read_preference
from research.data.prompts import OPTIONAL, prompt_windows, read_prompt
from research.data.questions import question_windows, read_question
from research.data.tags import read_tagged, tag_names, tag_windows
from research.data.text_records import Columns, read_labelled, read_texts
from research.data.windows import WindowOptions, Windows


@dataclass(frozen=True)
class Layout:
    """A kind of records: how they become documents, and documents windows of tokens.

    fields    the fields of a document beside "path"; a tokenizer is trained on all of them
    columns   the sets of names that a query "?NAME=COLUMN" may use
    read      (record, {name: its column}) -> {field: text}; ValueError for an unsuitable record
    windows   (documents, options) -> windows with random access
    measured  the field whose size in bytes and under gzip is reported
    usual     {name: column} sets that are tried without a query, the first that the data have;
              () tries the names of `columns` themselves
    classes   the field that names the class of a record, "" for none
    names_of  where a record has several: the names in that field
    optional  further columns, read if the data have them
    read_by   names of the objectives that read this layout, for error messages
    media     whether its records have pictures, sounds or videos
    answers   whether its windows are prompts with answers, and `data.prompt_tokens` counts
    """

    fields: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    read: Callable[[Mapping[str, Any], Columns], dict[str, str]]
    windows: Callable[[Documents, WindowOptions], Windows]
    measured: str
    usual: tuple[Columns, ...] = ()
    classes: str = ""
    names_of: Callable[[str], list[str]] | None = None
    optional: tuple[str, ...] = ()
    read_by: tuple[str, ...] = ()
    answers: bool = False
    media: bool = False


class OtherColumns(ValueError):
    """The data do not have the columns that a layout needs, or a query names."""


# A medium and what is said of it, by the names that data sets have for them; Hugging Face's folders
# of pictures say "file_name".
_CAPTIONED = tuple(
    {kind: medium, "text": text}
    for kind in KINDS
    for medium in ((kind, "file_name") if kind == "image" else (kind,))
    for text in ("text", "caption", "name", "transcript")
)

# By the name that an objective `reads`.
LAYOUTS: dict[str, Layout] = {
    "texts": Layout(
        ("text",),
        (("text",),),
        read_texts,
        text_windows,
        measured="text",
        read_by=("causal_lm", "masked_lm", "span_corruption", "distillation"),
    ),
    "pairs": Layout(
        ("inputs", "targets"),
        (("inputs", "targets"),),
        read_texts,
        pair_windows,
        measured="targets",
        read_by=("translation",),
    ),
    "labels": Layout(
        ("text", "label"),
        (("text", "label"),),
        read_labelled,
        labelled_windows,
        measured="text",
        classes="label",
        read_by=("classification",),
    ),
    "tags": Layout(
        ("text", "tags"),
        (("tokens", "tags"), ("text", "entities")),
        read_tagged,
        tag_windows,
        measured="text",
        classes="tags",
        names_of=tag_names,
        read_by=("token_classification",),
        # Words with a tag each, by the names of data sets; spans of a text, as Prodigy has them.
        usual=(
            *(
                {"tokens": words, "tags": tags}
                for words in ("tokens", "words")
                for tags in ("ner_tags", "tags", "ner", "labels", "pos_tags")
            ),
            *({"text": "text", "entities": spans} for spans in ("entities", "spans")),
        ),
    ),
    "questions": Layout(
        ("question", "context", "answers"),
        (("question", "context", "answers"),),
        read_question,
        question_windows,
        measured="context",
        read_by=("question_answering",),
    ),
    "conversations": Layout(
        ("conversation",),
        (
            ("messages",),
            ("instruction", "output"),
            ("instruction", "input", "output"),
            ("prompt", "completion"),
        ),
        read_conversation,
        conversation_windows,
        measured="conversation",
        optional=("tools", "system", "history"),
        read_by=("chat",),
        # OpenAI's name, ShareGPT's, Alpaca's with and without further input.
        usual=(
            {"messages": "messages"},
            {"messages": "conversations"},
            {name: name for name in ("instruction", "input", "output")},
            {name: name for name in ("instruction", "output")},
        ),
    ),
    "media": Layout(
        ("conversation",),
        # Columns with media are optional ones, since the parts of messages may have them.
        (("messages",), ("text",), ("question", "text")),
        read_media,
        media_windows,
        measured="conversation",
        optional=("tools", "system", *MEDIA_COLUMNS),
        read_by=("media_chat",),
        media=True,
        usual=_CAPTIONED + ({"messages": "messages"}, {"messages": "conversations"}),
    ),
    "captions": Layout(
        ("text",),
        tuple((kind, "text") for kind in KINDS),
        read_caption,
        caption_windows,
        measured="text",
        read_by=("contrastive",),
        media=True,
        usual=_CAPTIONED,
    ),
    "preferences": Layout(
        (*SIDES, MARGIN),
        (("prompt", *SIDES), SIDES),
        read_preference,
        preference_windows,
        measured="chosen",
        optional=("tools", "system", MARGIN),
        read_by=("preference", "reward"),
        answers=True,
        # With the prompt in a column of its own, as LLaMA-Factory has it, within both sides.
        usual=tuple(
            {**prompt, **{side: side for side in SIDES}}
            for prompt in ({"prompt": "prompt"}, {"prompt": "conversations"}, {})
        ),
    ),
    "judgements": Layout(
        ("answer", "label"),
        (("prompt", "completion", "label"), ("messages", "label")),
        read_judgement,
        judgement_windows,
        measured="answer",
        optional=("tools", "system"),
        read_by=("judgement",),
        answers=True,
    ),
    "prompts": Layout(
        ("prompt", "record"),
        (("prompt",),),
        read_prompt,
        prompt_windows,
        measured="record",
        optional=OPTIONAL,
        read_by=("policy", "on_policy_distillation"),
        # A list of messages is a conversation unless a query names it.
        usual=tuple({"prompt": name} for name in ("prompt", "question", "problem")),
    ),
}


def choose_columns(
    query: str, columns: Sequence[str], source: str, layout: str, everywhere: Collection[str] = ()
) -> dict[str, str]:
    """{name in the layout: column of the data}, by the query, or by the usual names if it is empty.

    `columns` are those that the data have. `source` is quoted in messages, which show how to write
    it. Of the columns in a query, those that other files have (`everywhere`) may be missing where
    the layout does without them. OtherColumns, a ValueError, for a query with other names than the
    layout's and for columns that are missing; it names the layouts that the data do fit.

    >>> choose_columns("text=content", ["content", "url"], "a.jsonl", "texts")
    {'text': 'content'}
    """
    row = LAYOUTS[layout]
    # The spelling of a URL's query, which people know and which no path or name of TFDS contains.
    chosen = dict(parse_qsl(query, keep_blank_values=True))
    if not query:
        chosen = _usual(layout, columns)
    # Files of a folder are asked one by one: a column that only others have is no mistake of the
    # query, and this file is read by the set of columns that does without.
    needed = {name: column for name, column in chosen.items() if name not in row.optional}
    absent = {name for name in needed if needed[name] in set(everywhere) - set(columns)}
    if set(needed) - absent in map(set, row.columns):
        needed = {name: column for name, column in needed.items() if name not in absent}
    if set(needed) not in map(set, row.columns) or not set(needed.values()) <= set(columns):
        raise OtherColumns(_no_columns(columns, source, layout))
    # Optional columns are looked for under their own names unless the query says otherwise.
    optional = {name: chosen.get(name, name) for name in row.optional}
    # One that a query names may be missing in the first record, whose columns are known, alone.
    read = {n: column for n, column in optional.items() if n in chosen or column in columns}
    return needed | read


def _no_columns(columns: Sequence[str], source: str, layout: str) -> str:
    """The line for data without the columns of a layout."""
    row, plain = LAYOUTS[layout], source.partition("?")[0]
    queries = ["?" + "&".join(f"{name}=FIELD" for name in names) for names in row.columns]
    line = (
        f"{source.removesuffix('?')} has the fields {', '.join(sorted(columns)) or '(none)'}; name "
        f"the wanted ones, as in '{plain}{queries[0]}'"
        f"{''.join(f' or {query!r}' for query in queries[1:])}"
    )
    usual = {name: set(_usual(name, columns).values()) for name in LAYOUTS if name != layout}
    # A labelled text is a text, too, but that is not what it was meant for.
    fitting = [
        name
        for name, one in usual.items()
        if one and not any(one < other for other in usual.values())
    ]
    if fitting and row.read_by:
        objectives = [one for name in fitting for one in LAYOUTS[name].read_by]
        line += (
            f"; these are {' or '.join(fitting)}, and {', '.join(row.read_by)} can only read "
            f"{layout}: for {' or '.join(fitting)} set config.objective.name to "
            f"{' or '.join(objectives)}"
        )
    return line


def _usual(layout: str, columns: Sequence[str]) -> dict[str, str]:
    """The first usual set of columns that the data have, {} for none."""
    row = LAYOUTS[layout]
    usual = row.usual or [{name: name for name in names} for names in row.columns]
    return next((dict(names) for names in usual if set(names.values()) <= set(columns)), {})


def read_record(
    row: Mapping[str, Any], columns: Columns, layout: str, file: str, index: int
) -> dict[str, str]:
    """The fields of a record as text. UnreadableRecord, which names the file and the index, for a
    record that does not suit the layout."""
    try:
        return LAYOUTS[layout].read(row, columns)
    # UnicodeError is a ValueError. Deep nesting ends in RecursionError, here or in the parser.
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord(file, index, error) from None
