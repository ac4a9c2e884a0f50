"""Text summary of a score."""

from __future__ import annotations

_PERCENT = (
    ("mAP50-95", "map50_95"),
    ("mAP50", "map50"),
    ("recall", "recall"),
    ("recall < 16 px", "recall_tiny"),
    ("recall < 32 px", "recall_small"),
    ("recall 32-96 px", "recall_medium"),
    ("recall > 96 px", "recall_large"),
)


def rows(scored: dict) -> list[tuple[str, str, str]]:
    """Return rows of (figure, offline, streaming) for text and report."""
    both = scored["offline"], scored["streaming"]
    first = [way["first_detection_s"] for way in both]
    table = [(f"{name} (%)", [_number(w[key], 100) for w in both]) for name, key in _PERCENT]
    table += [
        ("false alarms per minute", [_number(w["false_alarms_per_minute"]) for w in both]),
        ("first detection p50 (s)", [_number(f["p50"], digits=2) for f in first]),
        ("first detection p95 (s)", [_number(f["p95"], digits=2) for f in first]),
        ("never detected", [f"{f['never']} of {f['tracks']}" for f in first]),
    ]
    return [(name, offline, streaming) for name, (offline, streaming) in table]


def summary(scored: dict) -> str:
    """Return the score as lines for a terminal."""
    frames = scored["frames"]
    lines = [f"{'':<26}{'offline':>12}{'streaming':>12}"]
    lines += [f"{name:<26}{offline:>12}{now:>12}" for name, offline, now in rows(scored)]
    lines.append("")
    for name, key in (("latency", "latency_ms"), ("age of latest predictions", "age_ms")):
        p50, p95, p99 = (_number(scored[key][p]) for p in ("p50", "p95", "p99"))
        lines.append(f"{name} p50, p95, p99: {p50}, {p95}, {p99} ms")
    lines.append(
        f"frames: {frames['due']} due at {_number(frames['rate_hz'])} Hz, "
        f"{_number(frames['not_delivered'], digits=0)} not delivered by the camera, "
        f"{frames['unprocessed']} not processed by the detector, {frames['processed']} processed"
    )
    lines.append(
        f"{scored['seconds']:.1f} s, {scored['objects']} boxes of {scored['tracks']} tracked "
        f"objects; recall and false alarms at confidence {scored['confidence']:g} and IoU 0.5"
    )
    return "\n".join([*lines, *(f"note: {note}" for note in scored["notes"])])


def _number(value: float | None, scale: float = 1, digits: int = 1) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"
