"""A model that is opened without a direction of its token table."""

import numpy as np
import pytest

from research.run.erased import erase
from research.run.opened import Opened
from tests.evals.test_laws import MODEL, TOKENIZER, opened


def model() -> Opened:
    return Opened(MODEL, opened().params, TOKENIZER, 8, True, (), "tiny")


def test_the_words_of_a_pair_become_alike_and_a_direction_by_lot_leaves_them_apart(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("first,second\nhe,she\n")
    plain = model()
    table_VD = np.asarray(plain.params["embed"]["table"])

    def apart(erased: Opened) -> float:
        """The distance of the two words, as the mean rows of their bytes."""
        rows_VD = np.asarray(erased.params["embed"]["table"])
        he, she = (rows_VD[TOKENIZER.encode(f" {word}")].mean(0) for word in ("he", "she"))
        return float(np.linalg.norm(he - she))

    before = apart(plain)
    # Float32 rows of a few units.
    assert apart(erase(plain, str(file))) < 1e-4 * before
    assert apart(erase(plain, "random:0")) > before / 2
    assert apart(erase(plain, "gender@2")) < before
    np.testing.assert_array_equal(plain.params["embed"]["table"], table_VD)


@pytest.mark.parametrize(
    ("spelling", "line"),
    [
        ("gendr", "is no file and no name; wanted gender, random:SEED"),
        ("random", "has no seed"),
        ("gender@two", "@two is no number"),
        ("gender@99", "not 99"),
    ],
)
def test_what_cannot_be_erased_is_refused_in_a_line(spelling, line):
    with pytest.raises(ValueError) as caught:
        erase(model(), spelling)
    assert line in str(caught.value) and "\n" not in str(caught.value)
