"""Words of one gender with their counterparts, and texts in which each stands for the other."""

import re

# By these the direction of gender is found (Bolukbasi et al. 2016, arXiv:1607.06520, section 5).
DEFINING = (
    *(("she", "he"), ("her", "his"), ("woman", "man"), ("Mary", "John"), ("herself", "himself")),
    *(("daughter", "son"), ("mother", "father"), ("girl", "boy"), ("female", "male")),
)
# Both ways. "Her" stands for "his" and "him", see `swapped`.
_PAIRS = (
    *(("she", "he"), ("hers", "his"), ("herself", "himself"), ("woman", "man"), ("girl", "boy")),
    *(("women", "men"), ("girls", "boys"), ("mother", "father"), ("mothers", "fathers")),
    *(("daughter", "son"), ("daughters", "sons"), ("sister", "brother"), ("sisters", "brothers")),
    *(("wife", "husband"), ("wives", "husbands"), ("aunt", "uncle"), ("aunts", "uncles")),
    *(("niece", "nephew"), ("queen", "king"), ("queens", "kings"), ("princess", "prince")),
    *(("lady", "gentleman"), ("ladies", "gentlemen"), ("madam", "sir"), ("female", "male")),
    *(("females", "males"), ("actress", "actor"), ("actresses", "actors"), ("bride", "groom")),
    *(("widow", "widower"), ("heroine", "hero"), ("goddess", "god"), ("duchess", "duke")),
    *(("mum", "dad"), ("mom", "dad"), ("mrs", "mr"), ("grandmother", "grandfather")),
    *(("waitress", "waiter"), ("hostess", "host"), ("landlady", "landlord")),
)
_SWAPS = {other: one for one, other in reversed(_PAIRS)} | dict(_PAIRS) | {"him": "her"}
_SWAPS["his"] = "her"
_WORD = re.compile(r"[A-Za-z]+")
# Behind "her" these begin something else than what is hers: "saw her in the house".
_AFTER_HIM = frozenset(
    "a about again all alone an and any as at away back because before but by down for from had "
    "has have if in into is it like more not now of off on or out over she so some than that the "
    "then there they this through to too up was well were what when where which while who will "
    "with without would you".split()
)


def swapped(text: str) -> str:
    """The text with each gendered word as its counterpart, in the letters' case (two-sided
    counterfactual augmentation, arXiv:1807.11714; names stay as they are).

    "Her" becomes "his" before a word that may be hers and "him" elsewhere, which is a guess.

    >>> swapped("She gave her son the book that his aunt gave her.")
    'He gave his daughter the book that her uncle gave him.'
    """

    def _counterpart(found: re.Match[str]) -> str:
        word = found[0]
        lower = word.lower()
        other = _SWAPS.get(lower)
        if lower == "her":
            behind = re.match(r"[ \n]+([A-Za-z]+)", text[found.end() :])
            hers = behind is not None and behind[1].lower() not in _AFTER_HIM
            other = "his" if hers else "him"
        if other is None:
            return word
        if word.isupper() and len(word) > 1:
            return other.upper()
        return other.capitalize() if word[0].isupper() else other

    return _WORD.sub(_counterpart, text)
