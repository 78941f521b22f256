"""What leaves that lie on another have in common."""

from typing import Any


class Over:
    """A leaf over a `base`, an array or another leaf: a weight of its shape."""

    base: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        """How many axes that has."""
        return len(self.shape)
