"""The equations of products with a weight, as in "BTD,DNH->BTNH"."""

from typing import NamedTuple


class Equation(NamedTuple):
    """The letters of activations, weight and result, each in order.

    >>> parse("BTD,DNH->BTNH")
    Equation(x='BTD', w='DNH', y='BTNH')
    >>> parse("BTD,DNH->BTNH").inputs, parse("BTD,DNH->BTNH").outputs
    ('D', 'NH')
    """

    x: str
    w: str
    y: str

    @property
    def to_x(self) -> str:
        """The product of the result's gradient with the weight that gives the activations'."""
        return f"{self.y},{self.w}->{self.x}"

    @property
    def inputs(self) -> str:
        """The weight's letters that the product sums over."""
        return "".join(letter for letter in self.w if letter not in self.y)

    @property
    def outputs(self) -> str:
        """The weight's letters that the result keeps."""
        return "".join(letter for letter in self.w if letter in self.y)

    @property
    def tokens(self) -> str:
        """The activations' letters that the result keeps."""
        return "".join(letter for letter in self.x if letter in self.y)


def parse(eqn: str) -> Equation:
    """The parts of an equation of one activation and one weight."""
    # No spaces: equations are constants of the program and written in one way.
    operands, result = eqn.split("->")
    x, w = operands.split(",")
    return Equation(x, w, result)
