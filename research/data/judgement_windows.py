"""Packing of answers that were liked or not, each beside one that belongs to another prompt."""

import numpy as np

from research.data.census import Census
from research.data.chat_windows import best_fit
from research.data.documents import Documents
from research.data.labelled import Labels
from research.data.places import first_of, first_path
from research.data.plain_answers import answer_encoder
from research.data.preference_windows import most_pairs, shorten_prompts
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions


class PackedJudgements:
    """Windows of one or more answers. Answer p is segment 2 p + 1; segment 2 p + 2 is its prompt
    with the answer of the next record that has another prompt, from which KTO estimates how far the
    policy has moved.

    `[i]` is a dict of int32 [length] arrays as `PackedPreferences` has, and "liked" (1 or -1 in the
    segments of an answer that was liked or was not, 0 for padding). Of a prompt longer than
    `prompt_tokens` (0 for no limit) the beginning is left out. Of an answer that then needs more
    than half a window the end is cut; one that is not reached before the cut is left out.

    `seed` permutes the records once; None keeps their order. Of `documents` the census has the path
    of the first record that is cut or left out. ValueError if fewer than two prompts are left.
    """

    def __init__(
        self,
        store: TokenStore,
        liked: np.ndarray,
        length: int,
        *,
        seed: int | None,
        prompt_tokens: int = 0,
        documents: Documents | None = None,
    ):
        if store.mask is None:
            raise ValueError("the tokens have no mask of the answers; tokenise conversations")
        self.stores, self._store, self._liked, self.length = (store,), store, liked, length
        total = len(store)
        whole, ends = store.offsets[:-1], store.offsets[1:]
        starts = shorten_prompts(store, whole, ends, prompt_tokens)
        self._starts = starts
        # The answer is the last run of the assistant's tokens; a template may write more behind it.
        said = np.concatenate([[0], np.asarray(store.mask, np.int8), [0]])
        begins, stops = (np.flatnonzero(np.diff(said) == step) for step in (1, -1))
        run = np.searchsorted(begins, ends) - 1
        self._answers, self._ends = (np.append(x, -1)[run] for x in (begins, stops))
        self._half = length // 2
        fits = (self._answers > starts) & (self._answers - starts < self._half)
        cut = fits & (self._ends - starts > self._half)
        self.census = Census(
            "answers",
            total,
            length - 1,
            left_out=int((~fits).sum()),
            cut=int(cut.sum()),
            shortened=int((starts > whole).sum()),
            first_left_out=first_path(documents, store, ~fits),
            first_cut=first_path(documents, store, cut),
        )
        order = np.arange(total) if seed is None else np.random.default_rng(seed).permutation(total)
        self._order = order[fits[order]]
        if len(self._order) < 2:
            raise ValueError(
                f"of {total} answer(s) {len(self._order)} fit into {self._half} tokens"
                f"{first_of(self.census.first_left_out)}, and each is compared with one to another "
                "prompt; give more, or set config.data.sequence_length"
            )
        self._other = self._to_other_prompts()
        sizes = [sum(map(len, self._pair(one))) for one in self._order.tolist()]
        most = most_pairs(length)
        packed = best_fit(sizes, length)
        self._windows = [bin[at : at + most] for bin in packed for at in range(0, len(bin), most)]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        window = np.zeros((5, self.length), np.int32)
        tokens, assistant, segments, positions, liked = window
        at, segment = 0, 0
        for which in self._windows[index]:
            record = int(self._order[which])
            prompt = int(self._answers[record] - self._starts[record])
            for ids in self._pair(record):
                end, segment = at + len(ids), segment + 1
                tokens[at:end], assistant[at + prompt : end] = ids, 1
                segments[at:end], positions[at:end] = segment, np.arange(len(ids))
                liked[at:end] = self._liked[record]
                at = end
        names = ("tokens", "assistant", "segments", "positions", "liked")
        return dict(zip(names, window))

    def _prompt(self, record: int) -> np.ndarray:
        return self._store.ids[self._starts[record] : self._answers[record]]

    def _to_other_prompts(self) -> dict[int, int]:
        """For each record the next one in order that answers another prompt."""
        order = self._order.tolist()
        prompts = [self._prompt(record).tobytes() for record in order]
        if len(set(prompts)) < 2:
            raise ValueError(
                f"all {len(order)} answers are to one prompt, and each is compared with one to "
                "another prompt; give answers to more prompts"
            )
        other: dict[int, int] = {}
        # Backwards: of neighbours with one prompt the later one knows which record comes next.
        following = next(i for i, prompt in enumerate(prompts) if prompt != prompts[-1])
        for at in reversed(range(len(order))):
            after = (at + 1) % len(order)
            if prompts[after] != prompts[at]:
                following = after
            other[order[at]] = order[following]
        return other

    def _pair(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a record's prompt with its own answer and with another's, cut at half a
        window."""
        ids, prompt = self._store.ids, self._prompt(record)
        both = (ids[self._answers[one] : self._ends[one]] for one in (record, self._other[record]))
        own, other = (np.concatenate([prompt, answer])[: self._half] for answer in both)
        return own, other


def judgement_windows(documents: Documents, options: WindowOptions) -> PackedJudgements:
    """Packed windows of judged answers, rendered by the chat template of the tokenizer if it has
    one."""
    store = options.conversations(documents, answer_encoder(options.tokenizer), "answer")
    labels = options.tokens(documents, "label", Labels(("0", "1")))
    if len(labels) != len(store):
        raise ValueError(
            f"{len(store)} answers but {len(labels)} labels: the template rejects some records; "
            "leave them out of the data"
        )
    liked = np.where(labels.ids > 0, 1, -1)
    return PackedJudgements(
        store,
        liked,
        options.length,
        seed=options.seed,
        prompt_tokens=options.prompt_tokens,
        documents=documents,
    )
