"""Where the texts of a token store stand among the documents that they were made from."""

import numpy as np

from research.data.documents import Documents, UnreadableRecord
from research.data.tokens import TokenStore


def first_path(documents: Documents | None, store: TokenStore, chosen: np.ndarray) -> str:
    """The path of the first document, of those in the store, for which `chosen` is true; "" where
    there is none, and without documents."""
    if documents is None or not chosen.any():
        return ""
    return documents[int(places(documents, store)[np.argmax(chosen)])]["path"]


def first_of(path: str) -> str:
    """What a message says of the first record that it is about; "" without one."""
    return f", the first that has not: {path}" if path else ""


def places(documents: Documents, store: TokenStore) -> np.ndarray:
    """The index among the documents of each one in the store, which leaves out what is bad."""
    if not store.bad_records:
        return np.arange(len(documents))
    found = []
    for index in range(len(documents)):
        try:
            name = f"{documents[index]['path']}: "
        except UnreadableRecord:
            continue
        if not any(line.startswith(name) for line in store.bad_records):
            found.append(index)
    return np.array(found)
