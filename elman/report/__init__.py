"""A run folder as one page to read: `report.html`, from config.json and log.jsonl alone; and its card, README.md."""

from elman.data.words import plain
from elman.report.card import write_card
from elman.report.figures import Band, Curve, bars, lines, matrix, roll
from elman.report.page import document, render, write_page, write_report
from elman.report.record import Part, Point, Record, Sample, finite, read_record

__all__ = [
    "Band",
    "Curve",
    "Part",
    "Point",
    "Record",
    "Sample",
    "bars",
    "document",
    "finite",
    "lines",
    "matrix",
    "plain",
    "read_record",
    "render",
    "roll",
    "write_card",
    "write_page",
    "write_report",
]
