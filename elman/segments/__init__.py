"""Lengths, masks and resets: which steps happen, cut into pieces that run by themselves.

A piece is a stretch of a row's steps, those that are masked out dropped, between two resets. Pieces are the rows that
circuits run on: they are sorted by length and their steps gathered into packed rows, so that padding is never computed
on, nothing in it can leak, and a row that is cut runs as several short ones side by side.

What is said of a batch of sequences `[T, B, …]` here is meant by elman's definition of a sequence: the piece of a row
that runs first starts from the row's state, unless it runs forward and a reset stands at or before its first step;
every other piece starts from the cell's initial state; a row's final state is that of its piece run last, or the state
that it came with if it has none.
"""

from elman.segments.layout import Layout
from elman.segments.segment import Segments

__all__ = ["Layout", "Segments"]
