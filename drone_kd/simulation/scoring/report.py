"""report.html: the score of a flight on one self-contained page."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from drone_kd.html_page import data_url, render_page
from drone_kd.media.compressed_images import EncodedError, encode
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.simulation.scoring.flight_record import Flight, FlightError
from drone_kd.simulation.scoring.matching import Moment, latencies_ms, match, moments
from drone_kd.simulation.scoring.text import WAYS, rows
from drone_kd.visualization import draw_box

# Folder beside a record with frames of the worst misses, STAMP.jpg.
MISSES_FOLDER = "misses"

# BGR.
_FOUND, _MISSED, _PREDICTED = (80, 220, 80), (60, 60, 255), (0, 220, 255)
_IMAGE_PX = 960
_BINS = 40
_MAX_IMAGES = 100


def render_report(scored: dict, flight: Flight, images: Path, title: str) -> str:
    """Return the page of a flight and its `score` as HTML.

    The folder `images` has frames of the flight, STAMP.jpg; it may be missing.

    Raises:
        FlightError: Jinja2 is not installed.
    """
    misses = [
        (name, data_url(image, "jpeg"))
        for name, image in _misses(flight, images, scored["confidence"])
    ]
    try:
        return render_page(
            _CONTENT,
            title,
            scored=scored,
            ways=WAYS,
            rows=rows(scored),
            timeline=_timeline(scored["timeline"]),
            histogram=_histogram(flight),
            misses=misses,
        )
    except ImportError:
        raise FlightError("The report needs jinja2: pip install 'drone_kd[simulation]'") from None


def _misses(flight: Flight, folder: Path, confidence: float) -> list[tuple[str, bytes]]:
    """Return captions and JPEGs with detected, missed and predicted boxes, the worst first."""
    drawn = []
    for leg in flight.legs:
        if not leg.truths:
            continue
        for moment in moments(leg):
            path = folder / f"{moment.stamp_ns}.jpg"
            try:
                missed, image = _draw(read_image(path), moment, confidence)
                content = encode(image, ".jpg")
            except (SourceError, EncodedError):  # missing, as of most moments, damaged or too long
                continue
            seconds = (moment.stamp_ns - min(leg.truths)) / 1e9
            drawn.append((missed, f"{seconds:.1f} s: {missed} missed", content))
            drawn.sort(key=lambda row: -row[0])
            del drawn[_MAX_IMAGES:]
    return [row[1:] for row in drawn]


def _draw(image: np.ndarray, moment: Moment, confidence: float) -> tuple[int, np.ndarray]:
    """Draw the boxes of a moment; returns the number of missed objects and the image."""
    truth, latest = moment.truth, moment.latest
    found = np.zeros(len(truth.names), bool)
    if latest is not None:
        found = match(truth, latest, confidence).found
        for box in latest.xyxy[latest.scores >= confidence]:
            draw_box(image, box, _PREDICTED)
    for box, hit in zip(truth.xyxy[~truth.ignored], found[~truth.ignored], strict=True):
        draw_box(image, box, _FOUND if hit else _MISSED)
    height, width = image.shape[:2]
    scale = min(1.0, _IMAGE_PX / width)
    size = round(width * scale), max(round(height * scale), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return int((~found & ~truth.ignored).sum()), np.asarray(small)


def _timeline(timeline: list[dict]) -> dict:
    """Return polylines in a box of 1000 by 200: recall of both kinds, and age of predictions."""
    end = max(timeline[-1]["t_s"], 1)
    oldest = max([row["age_ms"] for row in timeline if "age_ms" in row], default=0) or 1
    lines: dict[str, list[str]] = {"offline": [], "streaming": [], "age": []}
    for row in timeline:
        x = 1000 * row["t_s"] / end
        shares = {"streaming": (row["streaming"], row["objects"])}
        shares["offline"] = row["offline"], row["processed"]
        for way, (found, objects) in shares.items():
            if objects:
                lines[way].append(f"{x:.1f},{200 - 200 * found / objects:.1f}")
        if "age_ms" in row:
            lines["age"].append(f"{x:.1f},{200 - 200 * row['age_ms'] / oldest:.1f}")
    return {"end": end, "oldest": oldest, **{k: " ".join(v) for k, v in lines.items()}}


def _histogram(flight: Flight) -> list[tuple[float, float, int]]:
    """Return (lower edge in ms, height 0 to 1, count) of each bin of the latencies."""
    values = latencies_ms([leg for leg in flight.legs if leg.truths])
    if not values:
        return []
    # Outliers would squeeze all other values into one bar.
    top = max(float(np.percentile(values, 99)), 1.0)
    counts, edges = np.histogram(np.clip(values, 0, top), bins=_BINS, range=(0, top))
    return [(float(e), c / counts.max(), int(c)) for e, c in zip(edges, counts, strict=False)]


_CONTENT = """{% for note in scored.notes %}<p class="note">{{ note }}</p>{% endfor %}
<table><tr><th></th>{% for way in ways %}<th>{{ way }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<p>Offline compares predictions with the ground truth of their own frame; streaming compares the
true tracks, each 10 ms, with the newest predictions that had arrived; sap does so at the times of
the frames alone. Recall and false alarms at confidence {{ scored.confidence }} and IoU 0.5;
average precision over all predictions.</p>
<p>{{ scored.seconds }} s, {{ scored.objects }} boxes of {{ scored.tracks }} tracked objects.
Frames: {{ scored.frames.due }} due at {{ scored.frames.rate_hz }} Hz,
{{ scored.frames.not_delivered }} not delivered by the camera,
{{ scored.frames.unprocessed }} not processed by the detector,
{{ scored.frames.processed }} processed, {{ scored.frames.not_made }} not made in time. Real-time
factor {{ scored.frames.real_time_factor }}.</p>
<h2>Recall over time</h2>
<svg viewBox="0 0 1000 200" preserveAspectRatio="none">
<polyline points="{{ timeline.age }}" fill="none" stroke="#ccc" stroke-width="3"/>
<polyline points="{{ timeline.offline }}" fill="none" stroke="#27c" stroke-width="2"/>
<polyline points="{{ timeline.streaming }}" fill="none" stroke="#e70" stroke-width="2"/>
</svg>
<p><span style="color:#27c">offline</span> and <span style="color:#e70">streaming</span>, 0 to
100 % of the objects, over {{ timeline.end }} s; <span style="color:#999">age of the
latest predictions</span>, up to {{ timeline.oldest }} ms.</p>
<h2>Latency</h2>
<p>From the camera's stamp to the arrival of the predictions, p50 {{ scored.latency_ms.p50 }}, p95
{{ scored.latency_ms.p95 }}, p99 {{ scored.latency_ms.p99 }} ms; age of the latest predictions,
p50 {{ scored.age_ms.p50 }}, p95 {{ scored.age_ms.p95 }}, p99 {{ scored.age_ms.p99 }} ms.</p>
{% if histogram %}<svg viewBox="0 0 {{ histogram | length }} 1" preserveAspectRatio="none">
{% for start, height, count in histogram %}<rect x="{{ loop.index0 }}" y="{{ 1 - height }}"
width="0.9" height="{{ height }}" fill="#27c"><title>{{ '%.0f' % start }} ms: {{ count }}</title>
</rect>{% endfor %}</svg>
<p>0 to {{ '%.0f' % (histogram[-1][0] + histogram[1][0]) }} ms</p>{% endif %}
{% if misses %}<h2>Worst moments</h2>
<p>Latest predictions (yellow) on detected (green) and missed (red) objects.</p>
{% for name, image in misses %}<figure><img src="{{ image }}" alt="">
<figcaption>{{ name }}</figcaption></figure>{% endfor %}{% endif %}"""
