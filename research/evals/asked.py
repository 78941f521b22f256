"""How a record of an evaluation becomes a prompt, by a template or under its usual names, after
examples and in a chat's form; and what a model writes for prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from research.data.chat import render_chat
from research.data.tokenizers import Tokenizer
from research.evals.evaluation import Opened
from research.evals.records import Record, fill, text_of
from research.infer.conversation import answer_ends
from research.infer.decode import Generation
from research.infer.sampling import SamplingConfig
from research.serve import batch

# Where the question stands that a record asks, first come first served.
NAMES = ("prompt", "question", "query", "input", "inputs", "context", "ctx", "document", "text")


@dataclass(frozen=True)
class Asked:
    """prompt   a template with the record's fields in braces, "" for the field that there is of
             `NAMES`
    chat     whether the prompt is a message of a user, in the model's chat template
    system   the chat's system message, "" for none
    """

    prompt: str = ""
    chat: bool = False
    system: str = ""

    def __post_init__(self):
        if self.system and not self.chat:
            raise ValueError(f"system={self.system!r} is a message of a chat; set chat=True too")

    def question(self, record: Record, where: str) -> str:
        """The text of one record, without examples. ValueError for a missing field."""
        if self.prompt:
            return fill(self.prompt, record, where)
        return text_of(record, NAMES, where)

    def text(self, tokenizer: Tokenizer, examples: Sequence[tuple[str, str]], question: str) -> str:
        """What the model reads: `examples` of (question, answer), and the question. In a chat they
        are turns, else they are joined by blank lines."""
        if not self.chat:
            return "".join(f"{asked}{answer}\n\n" for asked, answer in examples) + question
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answer in examples:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answer.strip()})
        messages.append({"role": "user", "content": question})
        return render_chat(tokenizer, messages)


def write(
    opened: Opened,
    asked: Asked,
    questions: Sequence[str],
    sampling: SamplingConfig,
    examples: Sequence[tuple[str, str]] = (),
) -> list[Generation]:
    """What the model writes for each question. ValueError without a tokenizer, for a prompt that is
    too long, and in a chat for a model without a template."""
    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
    prompts: list = [asked.text(tokenizer, examples, question) for question in questions]
    ends = opened.stop_ids
    if asked.chat:  # the template has written the beginning of the text
        prompts = tokenizer.encode_batch(prompts)
        ends = answer_ends(tokenizer, ends)
    config = replace(sampling, bos=opened.begins_texts, stop_ids=(*sampling.stop_ids, *ends))
    return batch.write(opened.model, opened.params, tokenizer, prompts, config)
