"""report.html: a flight's score on one page that opens offline."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from drone_kd.html_page import data_url, render_page
from drone_kd.simulation.scoring.flight_record import Flight, FlightError
from drone_kd.simulation.scoring.matching import Moment, clock_offset_ns, match, moments
from drone_kd.simulation.scoring.text import rows

# Beside a record: frames of the worst misses, STAMP.jpg.
PICTURES_FOLDER = "misses"

# BGR.
_FOUND, _MISSED, _SAID = (80, 220, 80), (60, 60, 255), (0, 220, 255)
_PICTURE_PX = 960
_BINS = 40


def render_report(scored: dict, flight: Flight, pictures: Path, title: str) -> str:
    """Return the page.

    Args:
        scored: of `score`.
        flight: what was scored.
        pictures: folder with frames of it, STAMP.jpg; it may not be there.
        title: of the page.

    Raises:
        FlightError: Jinja2 is not installed.
    """
    misses = [
        (name, data_url(cv2.imencode(".jpg", picture)[1].tobytes(), "jpeg"))
        for name, picture in _misses(flight, pictures, scored["confidence"])
    ]
    try:
        return render_page(
            _CONTENT,
            title,
            scored=scored,
            rows=rows(scored),
            timeline=_timeline(scored["timeline"]),
            histogram=_histogram(flight),
            misses=misses,
        )
    except ImportError:
        raise FlightError("The report needs jinja2: pip install 'drone_kd[simulation]'") from None


def _misses(flight: Flight, folder: Path, confidence: float) -> list[tuple[str, np.ndarray]]:
    """Frames with what was found, missed and said by then, the worst first."""
    drawn = []
    for leg in flight.legs:
        if not leg.truths:
            continue
        for moment in moments(leg):
            path = folder / f"{moment.stamp_ns}.jpg"
            picture = cv2.imread(str(path)) if path.is_file() else None
            if picture is not None:
                missed, image = _draw(picture, moment, confidence)
                seconds = (moment.stamp_ns - min(leg.truths)) / 1e9
                drawn.append((missed, f"{seconds:.1f} s: {missed} missed", image))
    drawn.sort(key=lambda row: -row[0])
    return [row[1:] for row in drawn]


def _draw(picture: np.ndarray, moment: Moment, confidence: float) -> tuple[int, np.ndarray]:
    truth, said = moment.truth, moment.held
    found = np.zeros(len(truth.names), bool)
    if said is not None:
        found, _ = match(truth, said, confidence)
        for box in said.xyxy[said.scores >= confidence]:
            _rectangle(picture, box, _SAID)
    for box, hit in zip(truth.xyxy, found, strict=True):
        _rectangle(picture, box, _FOUND if hit else _MISSED)
    scale = min(1.0, _PICTURE_PX / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return int((~found).sum()), small


def _rectangle(picture: np.ndarray, box: np.ndarray, colour: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = box.round().astype(int).tolist()
    cv2.rectangle(picture, (x0 - 1, y0 - 1), (x1, y1), colour, 2)


def _timeline(timeline: list[dict]) -> dict:
    """Polylines in a box of 1000 by 200: share found in either way, and the age of answers."""
    end = max(timeline[-1]["t_s"], 1)
    oldest = max([row["age_ms"] for row in timeline if "age_ms" in row], default=0) or 1
    lines: dict[str, list[str]] = {"offline": [], "streaming": [], "age": []}
    for row in timeline:
        x = 1000 * row["t_s"] / end
        shares = {"streaming": (row["streaming"], row["objects"])}
        shares["offline"] = row["offline"], row["answered"]
        for way, (found, objects) in shares.items():
            if objects:
                lines[way].append(f"{x:.1f},{200 - 200 * found / objects:.1f}")
        if "age_ms" in row:
            lines["age"].append(f"{x:.1f},{200 - 200 * row['age_ms'] / oldest:.1f}")
    return {"end": end, "oldest": oldest, **{k: " ".join(v) for k, v in lines.items()}}


def _histogram(flight: Flight) -> list[tuple[float, float, int]]:
    """(from ms, height 0 to 1, answers) of the latencies."""
    values = [
        (answer.at_ns - clock_offset_ns(leg) - answer.stamp_ns) / 1e6
        for leg in flight.legs
        if leg.truths
        for answer in leg.answers
    ]
    if not values:
        return []
    # What is far beyond all others would press them into one bar.
    top = max(float(np.percentile(values, 99)), 1.0)
    counts, edges = np.histogram(np.clip(values, 0, top), bins=_BINS, range=(0, top))
    return [(float(e), c / counts.max(), int(c)) for e, c in zip(edges, counts, strict=False)]


_CONTENT = """{% for note in scored.notes %}<p class="note">{{ note }}</p>{% endfor %}
<table><tr><th></th><th>offline</th><th>streaming</th></tr>
{% for name, offline, streaming in rows %}
<tr><td>{{ name }}</td><td>{{ offline }}</td><td>{{ streaming }}</td></tr>{% endfor %}</table>
<p>Offline compares every answer with the truth of its own frame; streaming compares the truth of
every moment with the newest answer that was out by then. Recall and alarms at confidence
{{ scored.confidence }} and IoU 0.5; average precision over all that was published.</p>
<p>{{ scored.seconds }} s, {{ scored.objects }} boxes of {{ scored.tracks }} tracked objects.
Frames: {{ scored.frames.due }} due at {{ scored.frames.rate_hz }} Hz,
{{ scored.frames.not_delivered }} not delivered by the camera,
{{ scored.frames.unanswered }} unanswered by the detector, {{ scored.frames.answered }} answered.
</p>
<h2>Found, second by second</h2>
<svg viewBox="0 0 1000 200" preserveAspectRatio="none">
<polyline points="{{ timeline.age }}" fill="none" stroke="#ccc" stroke-width="3"/>
<polyline points="{{ timeline.offline }}" fill="none" stroke="#27c" stroke-width="2"/>
<polyline points="{{ timeline.streaming }}" fill="none" stroke="#e70" stroke-width="2"/>
</svg>
<p><span style="color:#27c">offline</span> and <span style="color:#e70">streaming</span>, 0 to
100 % of the objects, over {{ timeline.end }} s; <span style="color:#999">age of the answer in
hand</span>, up to {{ timeline.oldest }} ms.</p>
<h2>Latency</h2>
<p>Camera's stamp to answer in hand, p50 {{ scored.latency_ms.p50 }}, p95
{{ scored.latency_ms.p95 }}, p99 {{ scored.latency_ms.p99 }} ms; age of what is held at a moment,
p50 {{ scored.age_ms.p50 }}, p95 {{ scored.age_ms.p95 }}, p99 {{ scored.age_ms.p99 }} ms.</p>
{% if histogram %}<svg viewBox="0 0 {{ histogram | length }} 1" preserveAspectRatio="none">
{% for start, height, count in histogram %}<rect x="{{ loop.index0 }}" y="{{ 1 - height }}"
width="0.9" height="{{ height }}" fill="#27c"><title>{{ '%.0f' % start }} ms: {{ count }}</title>
</rect>{% endfor %}</svg>
<p>0 to {{ '%.0f' % (histogram[-1][0] + histogram[1][0]) }} ms</p>{% endif %}
{% if misses %}<h2>Worst moments</h2>
<p>What a pilot saw: boxes in hand (yellow) on objects found (green) and missed (red).</p>
{% for name, picture in misses %}<figure><img src="{{ picture }}" alt="">
<figcaption>{{ name }}</figcaption></figure>{% endfor %}{% endif %}"""
