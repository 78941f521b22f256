"""Texts that a model writes by briefs: which of their constraints are met, by rules."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.data.brief import Brief, read_brief
from research.evals.asked import Asked, write
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.evals.records import read_records, text_of
from research.infer.sampling import SamplingConfig


@dataclass(frozen=True)
class BriefsConfig:
    """data         a file of records as `research.apply write` reads them: "topic" or "brief", and
                 any of min_words, max_words, keywords, avoid, tone, format
    chat         whether the brief is a message of a user, in the model's chat template
    max_tokens   most tokens of a text
    temperature  0 takes the likeliest token
    limit        how many records are read, 0 for all
    """

    data: str = ""
    chat: bool = False
    max_tokens: int = 128
    temperature: float = 0.0
    limit: int = 0

    def __post_init__(self):
        if not self.data:
            raise ValueError("data is not set; set it to a file of briefs")
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} must not be negative")
        SamplingConfig(temperature=self.temperature, max_tokens=self.max_tokens)


@dataclass(frozen=True)
class Briefs(Evaluation):
    """Constrained writing, as instructions that can be verified (arXiv:2311.07911).

    constraints_met  share of all constraints that a rule can check
    all_met          share of the texts that meet all of theirs
    distinct_1, _2   different words, and pairs of words, of those of a text (arXiv:1510.03055,
                     section 5.2)

    Equal texts are counted by `research.apply write`, over all that it writes: they are no number
    of an item.
    """

    briefs: Sequence[tuple[str, Brief]]
    chat: bool = False
    sampling: SamplingConfig = SamplingConfig(temperature=0.0, max_tokens=128)

    config = BriefsConfig
    main = "constraints_met"

    @classmethod
    def make(cls, config: BriefsConfig, data: RunData) -> "Briefs":
        """ValueError for briefs that cannot be read, and for a model that is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}; only a decoder writes")
        briefs = []
        for id, record in read_records(config.data, config.limit):
            where = f"record {id} of {config.data}"
            try:
                text = text_of(record, ("brief", "topic", "text"), where)
                briefs.append((id, read_brief(text, record)))
            except ValueError as error:
                line = str(error)
                raise ValueError(line if line.startswith(where) else f"{where} {line}") from None
        sampling = SamplingConfig(temperature=config.temperature, max_tokens=config.max_tokens)
        return cls(briefs, config.chat, sampling)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a brief."""
        asked = [brief.instruction() for _, brief in self.briefs]
        # A model without a chat template goes on from the request itself.
        prompts = asked if self.chat else [f"{one}\n\n" for one in asked]
        texts = write(opened, Asked(chat=self.chat), prompts, self.sampling)
        for (id, brief), prompt, text in zip(self.briefs, asked, texts):
            yield _item(id, brief, prompt, text.text.strip())


def _item(id: str, brief: Brief, prompt: str, written: str) -> Item:
    met, words = brief.met(written), written.lower().split()
    totals: Totals = {}
    if met:
        totals["constraints_met"] = (float(sum(met.values())), float(len(met)))
        totals["all_met"] = (float(all(met.values())), 1.0)
    for n in (1, 2):
        grams = list(zip(*(words[at:] for at in range(n))))
        if grams:
            totals[f"distinct_{n}"] = (len(set(grams)) / len(grams), 1.0)
    missed = ", ".join(name for name, value in met.items() if not value)
    told = {"prompt": prompt, "written": written, "missed": missed}
    return Item(id, totals, told, {"format": brief.format} if brief.format else {})
