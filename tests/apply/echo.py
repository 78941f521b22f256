"""A writer without a model, and the flags of all jobs."""

from dataclasses import dataclass
from types import SimpleNamespace

from research.apply.writer import Writer
from research.data.tokenizers import load_tokenizer
from research.infer.sampling import SamplingConfig

BYTES = load_tokenizer("bytes")
FLAGS = {"style": "", "from_language": "", "to_language": "", "tries": 1}
FLAGS |= {"knowledge": "", "embedder": "", "index": "", "passages": 4, "similarity": 0.3}
FLAGS |= {"table": []}


@dataclass(frozen=True)
class Echo(Writer):
    """A writer that answers with a function of each prompt's text."""

    answer: object = None

    def write(self, prompts, seed=0):
        texts = [p if isinstance(p, str) else self.tokenizer.decode(p) for p in prompts]
        return [self.answer(text) for text in texts]


def echo(answer, kind="decoder", context=600, max_tokens=40, **sampling) -> Echo:
    """The writer of an `answer` to a prompt, of so many bytes."""
    model = SimpleNamespace(config=SimpleNamespace(kind=kind))
    config = SamplingConfig(max_tokens=max_tokens, temperature=0, **sampling)
    return Echo(model, {}, BYTES, config, context, (), None, answer)
