"""Intervals in lanes: none overlaps another of its lane, and there are no more lanes than that takes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def pack(intervals: Sequence[tuple[float, float]]) -> list[int]:
    """Return a lane for each interval, the lowest that is free when it begins.

    Parameters
    ----------
    intervals : sequence of (float, float)
        Begin and end, in any order; one that ends where another begins does not overlap it.
    """
    lanes = [0] * len(intervals)
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    count = 0
    for place in sorted(range(len(intervals)), key=lambda place: intervals[place]):
        begin, end = intervals[place]
        while busy and busy[0][0] <= begin:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, count = count, count + 1
        lanes[place] = lane
        heapq.heappush(busy, (end, lane))
    return lanes
