"""Packing of pairs of texts, (inputs, targets), for an encoder-decoder."""

import numpy as np

from research.data.census import Census, unmarked_bounds
from research.data.documents import Documents
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions


class PackedPairs:
    """Windows of consecutive pairs, as many as fit on both sides.

    `[i]` is a dict of int32 arrays: "inputs", "inputs_segments", "inputs_positions"
    [inputs_length] and the same for "targets" [targets_length]. A pair has the same segment
    number 1, 2, ... on both sides; 0 is padding. Positions count from 0 in each text. Each text
    ends in eos; one that is longer than the window is cut in front of it.

    `seed` permutes the pairs once; None keeps their order. ValueError if the stores hold different
    numbers of texts, and for lengths under 2.
    """

    def __init__(
        self,
        inputs: TokenStore,
        targets: TokenStore,
        inputs_length: int,
        targets_length: int,
        *,
        seed: int | None,
        eos_id: int,
    ):
        if len(inputs) != len(targets):
            raise ValueError(
                f"{len(inputs)} inputs but {len(targets)} targets; tokenise fields of the same "
                f"documents"
            )
        if min(inputs_length, targets_length) < 2:
            raise ValueError(
                f"lengths {inputs_length} and {targets_length} must be at least 2, for a token "
                f"and eos"
            )
        self._sides = (("inputs", inputs, inputs_length), ("targets", targets, targets_length))
        self._eos = eos_id
        # A text that ends in eos of its own does not get a second one.
        self._bounds = [unmarked_bounds(store, None, eos_id) for store in (inputs, targets)]
        self._order = (
            np.arange(len(inputs))
            if seed is None
            else np.random.default_rng(seed).permutation(len(inputs))
        )
        # Greedy: a new window starts where the next pair would overflow either side. Only the
        # order of the pairs is kept, not a best fit, so that `seed=None` is the order of the file.
        lengths = [(stops - starts)[self._order] + 1 for starts, stops in self._bounds]
        too_long = (lengths[0] > inputs_length) | (lengths[1] > targets_length)
        self.stores = (inputs, targets)
        # A translation that is missing from its row, more often than one that is meant.
        silent = int((lengths[1] == 1).sum())
        cut = int(too_long.sum())
        self.census = Census("pairs", len(inputs), inputs_length, cut=cut, silent=silent)
        sizes = (
            np.minimum(lengths[0], inputs_length).tolist(),
            np.minimum(lengths[1], targets_length).tolist(),
        )
        starts, filled = [], [inputs_length, targets_length]
        for pair, size in enumerate(zip(*sizes)):
            filled = [used + more for used, more in zip(filled, size)]
            if filled[0] > inputs_length or filled[1] > targets_length:
                starts.append(pair)
                filled = list(size)
        self._starts = np.array([*starts, len(inputs)])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = range(len(self))[index]
        pairs = self._order[self._starts[index] : self._starts[index + 1]]
        window = {}
        for (name, store, length), (starts, stops) in zip(self._sides, self._bounds):
            tokens, segments, positions = np.zeros((3, length), np.int32)
            at = 0
            for segment, pair in enumerate(pairs, 1):
                # A text that is too long loses its end; its eos stays, or the model would never
                # learn to stop there.
                ids = store.ids[starts[pair] : stops[pair]][: length - 1]
                end = at + len(ids) + 1
                tokens[at : end - 1], tokens[end - 1] = ids, self._eos
                segments[at:end] = segment
                positions[at:end] = np.arange(end - at)
                at = end
            window |= {name: tokens, f"{name}_segments": segments, f"{name}_positions": positions}
        return window


def pair_windows(documents: Documents, options: WindowOptions) -> PackedPairs:
    """Packed windows of pairs, with `options.length` tokens on each side."""
    inputs = options.tokens(documents, "inputs")
    targets = options.tokens(documents, "targets", options.tokenizer.targets)
    length, eos = options.length, options.tokenizer.eos_id
    return PackedPairs(inputs, targets, length, length, seed=options.seed, eos_id=eos)
