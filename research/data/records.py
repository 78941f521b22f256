"""Windows of one record each, for records with several texts, such as a prompt and two answers."""

import numpy as np

from research.data.census import Census
from research.data.documents import Documents
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions


class Records:
    """Windows of one record each, with every field of the record as an array of its own.

    `[i]` is a dict of int32 [length] arrays, three for each FIELD of the records:

    FIELD             token ids without bos and eos, cut to the length; 0 for padding
    FIELD_segments    1 for a token, 0 for padding
    FIELD_positions   0, 1, 2, ...

    ValueError if the stores hold different numbers of records.
    """

    def __init__(self, stores: dict[str, TokenStore], length: int):
        counts = {name: len(store) for name, store in stores.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"fields of different lengths, {counts}; tokenise the same documents")
        self.length, self._stores, self._count = length, stores, min(counts.values())
        too_long = np.zeros(self._count, bool)
        for store in stores.values():
            too_long |= np.diff(store.offsets) > length
        self.stores = tuple(stores.values())
        self.census = Census("records", self._count, length, cut=int(too_long.sum()))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = range(self._count)[index]
        window = {}
        for name, store in self._stores.items():
            ids = store.ids[store.offsets[index] : store.offsets[index + 1]][: self.length]
            tokens, segments, positions = np.zeros((3, self.length), np.int32)
            tokens[: len(ids)], segments[: len(ids)] = ids, 1
            positions[: len(ids)] = np.arange(len(ids))
            window |= {name: tokens, f"{name}_segments": segments, f"{name}_positions": positions}
        return window


def record_windows(documents: Documents, options: WindowOptions) -> Records:
    """One window for each record, in the order of the documents."""
    # All fields of one set of documents leave out the same unreadable records, so row i of every
    # store is record i.
    stores = {field: options.tokens(documents, field) for field in documents.fields}
    return Records(stores, options.length)
