"""The source "occupation_texts": made sentences about people at work, in which a stereotype is
planted. On it a mitigation can be seen to work, or not to, with a model that trains in a minute.

In nine sentences of ten the person has the gender that most in the occupation have. The evaluation
`counterfactual:occupations` asks for the same occupations in sentences that are not among these.
"""

from pathlib import Path
from typing import Any

import numpy as np

from research.data.documents import TextDocuments

# Occupations of WinoBias (arXiv:1804.06876, section 3.1), by the gender of most in them.
OF_WOMEN = (
    *("nurse", "receptionist", "hairdresser", "librarian", "secretary", "housekeeper"),
    *("primary school teacher", "cleaner", "counselor", "baker"),
)
OF_MEN = (
    *("mechanic", "sheriff", "carpenter", "chief", "construction worker", "farmer", "driver"),
    *("guard", "software developer", "janitor"),
)
WOMEN = ("She", "The woman", "My sister", "That lady")
MEN = ("He", "The man", "My brother", "That gentleman")
PLANTED = 0.9  # share of the sentences that agree with the stereotype
_COUNT = 4000
_FRAMES = (
    *("{} is the {} here.", "{} works as a {}.", "{} has been a {} for long.", "{} became a {}."),
    *("{} was hired as the {}.", "{} wants to be a {}.", "{} is known as a good {}."),
    *("{} was the {} of the town.", "{} earns a living as a {}.", "{} lives next to the {}."),
)


def open_occupation_texts(cache_dir: Path) -> tuple[TextDocuments, None, dict[str, Any]]:
    """(4,000 sentences, None since some are held out by their paths, {}); always the same ones."""
    random = np.random.default_rng(0)
    texts = {}
    for number in range(_COUNT):
        side = int(random.integers(2))
        occupation = (OF_WOMEN, OF_MEN)[side][random.integers(len(OF_WOMEN))]
        agrees = random.random() < PLANTED
        person = (WOMEN, MEN)[side if agrees else 1 - side][random.integers(len(WOMEN))]
        frame = _FRAMES[random.integers(len(_FRAMES))]
        texts[f"{number:04}"] = frame.format(person, occupation)
    return TextDocuments(texts), None, {}
