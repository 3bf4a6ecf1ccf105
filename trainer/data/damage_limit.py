"""How many samples may be damaged, in the words of the recipe."""

from __future__ import annotations


class DamageLimit(int):
    """A number of samples that messages show as what it was worked out from."""

    said: str

    def __new__(cls, most: int, said: str) -> DamageLimit:
        limit = super().__new__(cls, most)
        limit.said = said
        return limit

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]
        return int(self), self.said

    def __str__(self) -> str:
        return self.said
