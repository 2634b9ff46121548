"""Small counts by number, a byte each: what is known of each chunk of a call, or of each call of a job, to its end."""

from __future__ import annotations

#: What fits into a byte; more is not told apart.
_MOST = 255


class Tally:
    """How often each number from 0 on was counted, up to 255."""

    def __init__(self) -> None:
        self._counts = bytearray()
        self._different = 0

    def __len__(self) -> int:
        """Return how many numbers were counted."""
        return self._different

    def __contains__(self, number: int) -> bool:
        return self[number] > 0

    def __getitem__(self, number: int) -> int:
        return self._counts[number] if number < len(self._counts) else 0

    def add(self, number: int) -> int:
        """Count a number; return how often that was done before."""
        before = self[number]
        if number >= len(self._counts):
            self._counts.extend(bytes(number + 1 + len(self._counts) // 2 - len(self._counts)))
        self._counts[number] = min(before + 1, _MOST)
        self._different += not before
        return before
