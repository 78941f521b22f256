"""Chat templates that write tools, calls and thoughts, in the manner of usual ones, and
conversations for them; `python tests/data/tool_templates.py` from the root writes what transformers
makes of these to golden_tools.json.

Wanted: `pip install transformers jinja2`, no torch.
"""

import json
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden_tools.json")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get",
            "description": "Gets <x> & 'y', naïve",
            "parameters": {"type": "object", "properties": {"i": {"type": "integer"}}},
        },
    }
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get", "arguments": {"i": 3}}}
TALKS = {
    "plain": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "null": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "get", "tool_call_id": "abcdefghi", "content": "sunny"},
        {"role": "assistant", "content": "No.", "tool_calls": None},
    ],
    "said": [
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "abcdefghi"},
        {"role": "tool", "content": "", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "No."},
    ],
    "thought": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "thinking": "hm", "content": "b"},
    ],
}
VARIABLES = ({}, {"enable_thinking": False}, {"effort": "high"})

# Qwen's manner: tools in the system's turn, results as the user's, thoughts in a block.
_QWEN = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}{{- "
    "messages[0].content + '\n' }}{%- endif %}{%- for tool in tools %}{{- tool | tojson + '\n' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- elif messages[0].role == 'system' %}{{- "
    "'<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content "
    "+ '<|im_end|>\n' }}{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}OPEN"
    "{%- if m.reasoning_content is defined %}{{- '<think>' + m.reasoning_content + '</think>' }}"
    "{%- endif %}{%- if m.content %}{{- m.content }}{%- endif %}{%- for call in m.tool_calls %}{{- "
    "'\n<call>' + call.function.name + call.function.arguments | tojson }}{%- endfor %}{{- "
    "'<|im_end|>' }}CLOSE{{- '\n' }}{%- elif m.role == 'tool' %}{{- '<|im_start|>user\n<result>' + "
    "m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- "
    "'<|im_start|>assistant\n' }}{%- if enable_thinking is defined and not enable_thinking %}{{- "
    "'<think></think>' }}{%- endif %}{%- endif %}"
)
# Mistral's manner: tools before the question, JSON of calls, no turn of its own for results.
_MISTRAL = (
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{%- if tools is not none "
    "and loop.first %}{{- '[TOOLS]' + (tools | tojson(indent=1)) }}{%- endif %}{{- '[INST]' + "
    "m.content + '[/INST]' }}{%- elif m.tool_calls is defined and m.tool_calls is not none %}OPEN"
    "{{- '[CALLS][' }}{%- for call in m.tool_calls %}{{- call.function | tojson }}{{- ', ' if not "
    "loop.last }}{%- endfor %}{{- ']' + eos_token }}CLOSE{%- elif m.role == 'assistant' %}OPEN{{- "
    "' ' + m.content + eos_token }}CLOSE{%- elif m.role == 'tool' %}{{- '[RESULT]' + m.content | "
    "tojson + (effort if effort is defined else '') }}{%- endif %}{%- endfor %}"
)

# Gemma 3's manner: each part of a content is trimmed, a text as a whole.
PARTED = (
    "{{ bos_token }}{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}"
    "{%- if m['content'] is string %}{{- m['content'] | trim }}{%- else %}"
    "{%- for part in m['content'] %}{%- if part['type'] == 'text' %}{{- part['text'] | trim }}"
    "{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
PARTS = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "two "}, {"type": "text", "text": " parts"}],
    },
    {"role": "assistant", "content": " one "},
    {"role": "user", "content": [{"type": "text", "text": "and"}]},
]


def both(template: str) -> dict[str, str]:
    """A template plain, and with generation blocks around what the assistant says."""
    marked = template.replace("OPEN", "{%- generation %}")
    marked = marked.replace("CLOSE", "{%- endgeneration %}")
    return {"plain": template.replace("OPEN", "").replace("CLOSE", ""), "marked": marked}


TEMPLATES = {"qwen": both(_QWEN), "mistral": both(_MISTRAL)}


def main() -> None:
    import transformers

    from tests.data.chat_templates import save_tokenizer

    golden = {"transformers": transformers.__version__}
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        for name, template in TEMPLATES.items():
            for talk, messages in TALKS.items():
                for tools in (None, TOOLS):
                    for number, variables in enumerate(VARIABLES):
                        options = {"chat_template": template["marked"], "tools": tools, **variables}
                        apply = tokenizer.apply_chat_template
                        encoded = apply(
                            messages,
                            return_dict=True,
                            return_assistant_tokens_mask=True,
                            **options,
                        )
                        prompt = apply(
                            messages, tokenize=False, add_generation_prompt=True, **options
                        )
                        golden[f"{name} {talk} {bool(tools)} {number}"] = {
                            "prompt": prompt,
                            "ids": encoded["input_ids"],
                            "mask": encoded["assistant_masks"],
                        }
        golden["parts"] = tokenizer.apply_chat_template(
            PARTS, chat_template=PARTED, tokenize=False, add_generation_prompt=True
        )
    GOLDEN.write_text(json.dumps(golden, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
