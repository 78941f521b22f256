"""Texts beside the same with genders swapped: counterfactual augmentation of training data."""

from collections.abc import Iterator

from research.data.documents import Documents, digest
from research.data.gendered import swapped

_FORMAT = "1"  # part of the fingerprint: raise it when other texts are made


class Augmented:
    """Each document, and after it the same with `research.data.gendered.swapped` if that changes
    it: men and women are then in the same sentences as often (two-sided augmentation,
    arXiv:1807.11714). Named as the document, with ":swapped" behind."""

    fields = ("text",)

    def __init__(self, documents: Documents):
        self._documents, self.rules = documents, 2
        self.fingerprint = digest("counterfactual", _FORMAT, documents.fingerprint)
        self._places = [
            (index, turned)
            for index in range(len(documents))
            for turned in (False, True)
            if not turned or _changes(documents[index]["text"])
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, str]:
        which, turned = self._places[index]
        document = self._documents[which]
        if not turned:
            return {"text": document["text"], "path": document["path"]}
        return {"text": swapped(document["text"]), "path": f"{document['path']}:swapped"}

    def identities(self) -> Iterator[str]:
        """The paths, in order."""
        return (self[index]["path"] for index in range(len(self)))


def _changes(text: str) -> bool:
    return swapped(text) != text
