"""A run folder as one page to read: `report.html`, from config.json and log.jsonl alone."""

from elman.report.page import render, write_report
from elman.report.record import Point, Record, Sample, read_record

__all__ = ["Point", "Record", "Sample", "read_record", "render", "write_report"]
