"""Chat templates of the usual kinds and a tiny tokenizer, for the tests and for the script that
makes their golden file.

Each template is there plain and with its assistant's part marked by generation blocks; both write
the same text.
"""

import json
from typing import Any

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if "
    "message['role'] == 'assistant' %}"
    "OPEN{{ message['content'] + '<|im_end|>' }}CLOSE{% else %}{{ message['content'] + "
    "'<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system = "
    "messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system = '' %}\n{%- endif "
    "%}\n"
    "{{- '<|start|>system<|end|>\n\nToday is ' + strftime_now('%d %b %Y') + '\n\n' + system + "
    "'<|eot|>' }}\n"
    "{%- for message in messages %}\n    {{- '<|start|>' + message['role'] + '<|end|>\n\n' }}\n"
    "    {%- if message['role'] == 'assistant' %}\n        OPEN{{- message['content']|trim + "
    "'<|eot|>' }}CLOSE\n"
    "    {%- else %}\n        {{- message['content']|trim + '<|eot|>' }}\n    {%- endif %}\n{%- "
    "endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start|>assistant<|end|>\n\n' }}\n{%- endif %}\n"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}OPEN{{ ' ' + message['content'] + eos_token }}CLOSE{% endif %}{% endfor %}"
)
_LOOPS = (  # loop controls, tojson, blocks on lines of their own
    "{% for message in messages %}\n    {% if message.role == 'system' %}\n        {% continue "
    "%}\n    {% endif %}\n"
    "{{ message.role }}: {% if message.role == 'assistant' %}OPEN{{ message.content | tojson "
    "}}CLOSE"
    "{% else %}{{ message.content | tojson }}{% endif %}\n\n{% endfor %}\n"
    "{% if add_generation_prompt %}\nassistant: {% endif %}"
)


def _both(template: str) -> dict[str, str]:
    marked = template.replace(
        "OPEN", "{%- generation %}" if "{{-" in template else "{% generation %}"
    )
    marked = marked.replace(
        "CLOSE", "{%- endgeneration %}" if "{{-" in template else "{% endgeneration %}"
    )
    return {"plain": template.replace("OPEN", "").replace("CLOSE", ""), "marked": marked}


TEMPLATES = {
    name: _both(t)
    for name, t in (
        ("chatml", _CHATML),
        ("llama3", _LLAMA3),
        ("mistral", _MISTRAL),
        ("loops", _LOOPS),
    )
}

# Thoughts are written for the last answer alone, as Qwen 3's template does it.
STRIPS_THOUGHTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == "
    "'assistant' and not loop.last %}"
    "{{ message.content.split('</think>')[-1] }}{% else %}{{ message.content }}{% endif %}{{ "
    "'<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CONVERSATIONS = {
    "one": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a fish."},
        {"role": "assistant", "content": "The pike."},
        {"role": "user", "content": "Another."},
        {"role": "assistant", "content": "A tench, or the the perch."},
    ],
    "letters": [
        {"role": "user", "content": "Übersetze: «naïve» <b>& 'fish'</b>"},
        {"role": "assistant", "content": '日本語 🐟 naïve\n\n"ok"  '},
        {"role": "user", "content": "danke"},
        {"role": "assistant", "content": "\n\n  bitte"},
    ],
    "unanswered": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " the the b"},
        {"role": "user", "content": "c"},
    ],
}

_SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>")


def tokenizer_json() -> dict[str, Any]:
    """A byte-level BPE of 256 bytes, a few merges (across line breaks too) and the templates'
    special tokens."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    alphabet = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    merges = [
        ["Ċ", "Ċ"],
        ["t", "h"],
        ["th", "e"],
        ["Ġ", "the"],
        ["Ġ", "Ġ"],
        ["i", "s"],
        ["Ġ", "4"],
        ["n", "Ċ"],
    ]
    vocab = {token: n for n, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "added_tokens": [
            {"id": len(vocab) + n, "content": token, **flags} for n, token in enumerate(_SPECIALS)
        ],
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def save_tokenizer(folder, template: str | None = None) -> None:
    """The tokenizer as a folder of Hugging Face's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
