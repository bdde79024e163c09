"""A run folder as one page to read: `report.html`, from config.json and log.jsonl alone."""

from elman.report.figures import Band, Curve, bars, lines, matrix
from elman.report.page import render, write_report
from elman.report.record import Part, Point, Record, Sample, finite, read_record
from elman.report.words import plain

__all__ = [
    "Band",
    "Curve",
    "Part",
    "Point",
    "Record",
    "Sample",
    "bars",
    "finite",
    "lines",
    "matrix",
    "plain",
    "read_record",
    "render",
    "write_report",
]
