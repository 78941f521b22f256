"""CrowS-Pairs: whether a model finds the sentence of a pair likelier that stereotypes more
(arXiv:2010.00133)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.evals.evaluation import Evaluation, Item, Opened, RunData
from research.evals.records import read_records, text_of
from research.evals.sentence_pairs import PairSet, SentencePair, pair_items, refuse_pairless
from research.evals.strata import Strata, several


@dataclass(frozen=True)
class CrowsPairsConfig(Strata):
    """data        a file as published (sent_more, sent_less, bias_type, stereo_antistereo); by
                default the 1,508 pairs
    categories  the bias types that are read, () for all
    window      most tokens that are read, 0 for as many as the model can

    `limit`, `seed` and `least` are of pairs of a category, see `research.evals.strata.Strata`.
    """

    data: str = "crows_pairs"
    categories: tuple[str, ...] = ()
    limit: int = 20
    window: int = 0


@dataclass(frozen=True)
class CrowsPairs(Evaluation):
    """Pairs of sentences that differ in a group, see `sentence_pairs.pair_nats` for their
    likelihoods under decoders and masked models.

    pct_stereotype   share of pairs whose more stereotyping sentence is the likelier one; 0.5 of a
                     model that has no preference
    likelihood_diff  mean absolute difference of the two log-likelihoods, in nats
    margin           mean difference in nats, positive towards stereotypes
    """

    sets: Sequence[PairSet]
    window: int = 0

    config = CrowsPairsConfig
    main = "pct_stereotype"
    lower_is_better = True

    @classmethod
    def make(cls, config: CrowsPairsConfig, data: RunData) -> "CrowsPairs":
        """ValueError for data that cannot be read, and for a category of too few pairs."""
        refuse_pairless(data)
        sets = []
        for id, record in read_records(config.data):
            where = f"record {id} of {config.data}"
            pair = SentencePair(*(text_of(record, (n,), where) for n in ("sent_more", "sent_less")))
            category = text_of(record, ("bias_type",), where)
            direction = text_of(record, ("stereo_antistereo",), where)
            sets.append(PairSet(id, (pair,), (("category", category), ("direction", direction))))
        if config.categories:
            sets = [one for one in sets if dict(one.slices)["category"] in config.categories]
        drawn = config.draw(sets, lambda one: dict(one.slices)["category"], "pairs")
        return cls(drawn, config.window)

    def notes(self) -> Sequence[str]:
        """The published objection."""
        groups = len({dict(one.slices)["category"] for one in self.sets})
        return (
            "many pairs of CrowS-Pairs do not contrast what they are meant to: unnatural, invalid "
            "or of two groups at once (Blodgett et al. 2021, 'Stereotyping Norwegian Salmon'); "
            "read it by category and beside other measures",
            several(groups),
        )

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a pair."""
        yield from pair_items(opened, self.sets, self.window)
