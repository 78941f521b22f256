"""A needle in a haystack: whether a model finds one fact in a long text, by length and depth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from research.data.tokenizers import Tokenizer
from research.evals.asked import Asked, write
from research.evals.evaluation import Evaluation, Item, Opened, RunData
from research.infer.sampling import SamplingConfig

_FILL = (
    "The {thing} was {state} when the {who} came back in the {when}.",
    "Nobody in the {when} had seen the {thing} so {state}.",
    "A {who} told us that the {thing} would be {state} by the {when}.",
    "In the {when} the {who} painted a {thing}, and it looked {state}.",
)
_WORDS = {
    "thing": "bridge garden kettle market orchard piano river ship table tower window".split(),
    "state": "bright cold dusty empty green heavy narrow quiet slow warm wide".split(),
    "who": "baker doctor farmer gardener miller painter pilot sailor teacher weaver".split(),
    "when": "afternoon autumn evening holidays morning night spring summer winter".split(),
}
_CITIES = "Aarhus Bergen Cusco Dakar Évora Fukuoka Ghent Hobart Izmir Jaipur Kyoto Lima".split()


@dataclass(frozen=True)
class NeedleConfig:
    """lengths  tokens of the texts
    depths   where the needle stands, from 0, the beginning, to 1, the end
    texts    how many texts for each length and depth
    chat     whether the text is a message of a user, in the model's chat template
    seed     of the texts
    """

    lengths: tuple[int, ...] = (256, 512, 1024)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    texts: int = 4
    chat: bool = False
    seed: int = 0

    def __post_init__(self):
        if not self.lengths or min(self.lengths) < 64 or self.texts < 1:
            raise ValueError(
                f"lengths={self.lengths} must be of 64 tokens or more, and texts={self.texts} "
                "positive"
            )
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"depths={self.depths} must be from 0 to 1")


@dataclass(frozen=True)
class Needle(Evaluation):
    """Texts of made-up sentences with "The secret number of CITY is NUMBER." at some depth, and the
    question for it at the end.

    found  share of texts of which the model writes the number, with the likeliest tokens

    Groups are lengths and depths. The texts of a tokenizer are its own, so two models compare where
    their tokenizers are the same.
    """

    lengths: Sequence[int]
    depths: Sequence[float]
    texts: int = 4
    asked: Asked = Asked()
    seed: int = 0

    config = NeedleConfig
    main = "found"

    @classmethod
    def make(cls, config: NeedleConfig, data: RunData) -> "Needle":
        """ValueError for a model that is no decoder."""
        if data.model_kind != "decoder":
            raise ValueError(f"the model is of kind {data.model_kind}; a decoder reads a haystack")
        lengths, depths = tuple(config.lengths), tuple(map(float, config.depths))
        return cls(lengths, depths, config.texts, Asked(chat=config.chat), config.seed)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a text. ValueError for one that is longer than the model's positions."""
        tokenizer, most = opened.tokenizer, opened.model.config.max_length
        if tokenizer is None:
            raise ValueError("the model has no tokenizer; put its tokenizer.json into the folder")
        if max(self.lengths) > most:
            raise ValueError(
                f"lengths={tuple(self.lengths)} go beyond the model's {most} positions; set "
                "shorter ones"
            )
        sampling = SamplingConfig(temperature=0.0, max_tokens=12, stop=("\n",))
        for length in self.lengths:
            cells = [(depth, n) for depth in self.depths for n in range(self.texts)]
            made = [self._text(tokenizer, length, depth, n) for depth, n in cells]
            written = write(opened, self.asked, [text for text, _ in made], sampling)
            for (depth, n), (text, number), one in zip(cells, made, written):
                found = number in one.text.replace(",", "").replace(" ", "")
                slices = {"length": f"{length:06d}", "depth": f"{depth:.2f}"}
                told = {"prompt": text[-300:], "written": one.text, "answer": number}
                name = f"length {length} depth {depth:g} text {n}"
                yield Item(name, {"found": (float(found), 1.0)}, told, slices)

    def _text(
        self, tokenizer: Tokenizer, length: int, depth: float, number: int
    ) -> tuple[str, str]:
        """(a text of at most `length` tokens with the needle, which ends in the question; the
        secret number)."""
        # Of the seed, the cell and the text alone: another choice of cells changes no text.
        place = [self.seed, length, round(depth * 1000), number]
        random = np.random.default_rng(place)
        city, secret = random.choice(_CITIES), str(random.integers(1000, 10000))
        needle = f"The secret number of {city} is {secret}."
        question = f"What is the secret number of {city}?"
        if not self.asked.chat:
            question += f"\nThe secret number of {city} is"
        # What stands around the sentences, a chat's template excepted, and the number itself.
        left = length - len(tokenizer.encode(f"{needle}\n\n{question}")) - 16
        if left < 0:
            raise ValueError(f"a text of {length} tokens has no room for a needle; set more")
        sentences: list[str] = []
        while left > 0:
            words = {name: random.choice(known) for name, known in _WORDS.items()}
            sentences.append(str(random.choice(_FILL)).format(**words))
            left -= len(tokenizer.encode(f" {sentences[-1]}"))
        sentences = sentences[:-1]
        sentences.insert(round(depth * len(sentences)), needle)
        return f"{' '.join(sentences)}\n\n{question}", secret
