"""drone-kd score: the score of a recorded flight."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from drone_kd.commands.shared_options import fraction
from drone_kd.files import write_text
from drone_kd.simulation.scoring.flight_record import FlightError, read_flight
from drone_kd.simulation.scoring.intervals import flights_summary
from drone_kd.simulation.scoring.report import MISSES_FOLDER, render_report
from drone_kd.simulation.scoring.score import score
from drone_kd.simulation.scoring.text import summary
from drone_kd.text import one_line

RECORD = "flight.jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    folder = f"folder of the scorer, or its {RECORD}; several: means and intervals, too"
    parser.add_argument("flights", nargs="+", type=Path, metavar="FLIGHT", help=folder)
    least = "score threshold of recall"
    parser.add_argument("--confidence", type=fraction, default=0.25, metavar="C", help=least)


def write_score(folder: Path, confidence: float = 0.25, title: str = "Flight") -> dict:
    """Score a folder's flight.jsonl as `score` does; writes score.json and report.html there.

    Raises:
        FlightError: it cannot be scored, with the reason.
    """
    flight = read_flight(folder / RECORD)
    scored = score(flight, confidence)
    write_text(folder / "score.json", json.dumps(scored, indent=1) + "\n")
    page = render_report(scored, flight, folder / MISSES_FOLDER, title)
    write_text(folder / "report.html", page)
    return scored


def run(arguments: argparse.Namespace) -> int:
    """Score the flights and print a summary of each, of several also their means."""
    for flight in arguments.flights:
        if not flight.exists():
            raise FlightError(f"{one_line(flight)}: no such flight")
    folders = [path if path.is_dir() else path.parent for path in arguments.flights]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise FlightError("expected different flights, got one twice")
    scores = []
    for folder in folders:
        scores.append(write_score(folder, arguments.confidence, one_line(folder.resolve().name)))
        print(summary(scores[-1]))
        print(f"report: {one_line(folder / 'report.html')}")
    if len(scores) > 1:
        print(flights_summary(scores))
    return 0
