"""`Writer`: what jobs ask of a model, through the one function that writes texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from research.data.tokenizers import Tokenizer
from research.infer.beam import BeamConfig, beam_search
from research.infer.conversation import answer_ends, conversation, encode_conversation
from research.infer.prompts import Prompt
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.serve.batch import write as generate
from research.tree import Tree


@dataclass(frozen=True)
class Writer:
    """A model that writes, and how: `context` is the most tokens of a prompt and what is written
    for it together, `ends` end its texts, and `beams`, if any, are searched."""

    model: Model
    params: Tree
    tokenizer: Tokenizer
    sampling: SamplingConfig
    context: int
    ends: tuple[int, ...] = ()
    beams: BeamConfig | None = None

    @property
    def chats(self) -> bool:
        """Whether the model follows an instruction, in its chat template."""
        return self.tokenizer.chat_template is not None

    @property
    def two_sided(self) -> bool:
        """Whether an encoder reads the text and a decoder writes another, as a translation."""
        return self.model.config.kind == "encoder_decoder"

    def prompt(self, instruction: str, text: str, cue: str) -> Prompt:
        """What the model reads of an instruction and a text: a message of a user, or for a model
        without a chat template the text and a `cue` after which the answer follows."""
        if self.two_sided:
            return f"{cue}{text}"
        if self.chats:
            asked = f"{instruction}\n\n{text}" if text else instruction
            return encode_conversation(self.tokenizer, conversation(asked))
        return f"{text}{cue}"

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer.encode(text))

    def room(self, instruction: str, cue: str) -> int:
        """Tokens of a text that fit beside its instruction and what is written. ValueError where
        fewer than 16 do."""
        empty = self.prompt(instruction, ".", cue)
        around = self.count(empty) if isinstance(empty, str) else len(empty)
        # An encoder reads as much as the decoder writes beside it; marks around a text are two.
        written = 0 if self.two_sided else self.sampling.max_tokens
        room = self.context - around - written - 2
        if room < 16:
            raise ValueError(
                f"of a context of {self.context} tokens {max(room, 0)} are left for a text beside "
                f"its instruction and --max_tokens={self.sampling.max_tokens}; lower --max_tokens "
                "or raise --window"
            )
        return room

    def write(self, prompts: Sequence[Prompt], seed: int = 0) -> list[str]:
        """What the model writes for each prompt, without spaces around it."""
        ends = answer_ends(self.tokenizer, self.ends) if self.chats else self.ends
        stop_ids = (*self.sampling.stop_ids, *ends)
        config = replace(self.sampling, stop_ids=stop_ids, seed=self.sampling.seed + seed)
        if self.beams is not None:
            found = beam_search(
                self.model, self.params, self.tokenizer, prompts, config, self.beams
            )
            return [one.text for one in found]
        found = generate(self.model, self.params, self.tokenizer, prompts, config)
        return [one.text for one in found]
