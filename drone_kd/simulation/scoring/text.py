"""Text summary of a score."""

from __future__ import annotations

# Name, key below each way and scale of the figures.
FIGURES = (
    ("mAP50-95 (%)", "map50_95", 100),
    ("mAP50 (%)", "map50", 100),
    ("recall (%)", "recall", 100),
    ("recall < 16 px (%)", "recall_tiny", 100),
    ("recall < 32 px (%)", "recall_small", 100),
    ("recall 32-96 px (%)", "recall_medium", 100),
    ("recall > 96 px (%)", "recall_large", 100),
    ("false alarms per minute", "false_alarms_per_minute", 1),
    ("wrong class per minute", "wrong_class_per_minute", 1),
    ("stale boxes at a time", "stale_boxes", 1),
)
# Ways to pair predictions with ground truth; the keys in a score.
WAYS = ("offline", "streaming", "sap")


def rows(scored: dict) -> list[tuple[str, ...]]:
    """Return rows of a figure's name and its value for each of `WAYS`, for text and report."""
    ways = [scored[way] for way in WAYS]
    first = [way["first_detection_s"] for way in ways]
    table = [(name, [_number(w[key], scale) for w in ways]) for name, key, scale in FIGURES]
    table += [
        ("first detection p50 (s)", [_number(f["p50"], digits=2) for f in first]),
        ("first detection p95 (s)", [_number(f["p95"], digits=2) for f in first]),
        ("never detected", [f"{f['never']} of {f['tracks']}" for f in first]),
    ]
    return [(name, *values) for name, values in table]


def summary(scored: dict) -> str:
    """Return the score as lines for a terminal."""
    frames = scored["frames"]
    lines = [
        f"{name:<26}" + "".join(f"{v:>12}" for v in row)
        for name, *row in (("", *WAYS), *rows(scored))
    ]
    lines.append("")
    for name, key in (("latency", "latency_ms"), ("age of latest predictions", "age_ms")):
        p50, p95, p99 = (_number(scored[key][p]) for p in ("p50", "p95", "p99"))
        lines.append(f"{name} p50, p95, p99: {p50}, {p95}, {p99} ms")
    lines.append(
        f"frames: {frames['due']} due at {_number(frames['rate_hz'])} Hz, "
        f"{_number(frames['not_delivered'], digits=0)} not delivered by the camera, "
        f"{frames['unprocessed']} not processed by the detector, {frames['processed']} processed"
    )
    p50, _, p99 = (_number(frames["delay_ms"][p]) for p in ("p50", "p95", "p99"))
    lines.append(
        f"camera: {_number(frames['not_made'], digits=0)} frames not made in time, delay p50, p99 "
        f"{p50}, {p99} ms, real-time factor {_number(frames['real_time_factor'], digits=3)}"
    )
    lines.append(
        f"{scored['seconds']:.1f} s, {scored['objects']} boxes ({scored['ignored']} more ignored) "
        f"of {scored['tracks']} tracked objects; recall and false alarms at confidence "
        f"{scored['confidence']:g} and IoU 0.5"
    )
    return "\n".join([*lines, *(f"note: {note}" for note in scored["notes"])])


def _number(value: float | None, scale: float = 1, digits: int = 1) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"
