# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables of the results pages that are more than a CSV file as it is."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.tables import Table

PLAIN, OURS = "plain", "distilled"
FULL = "class, box, assign"
DEFAULT = "**class, assign (default)**"


def _arms(name: str, ours: str, last: Mapping[str, str] | None = None) -> Table:
    """Return the table of a comparison of arms on paired seeds; ``last``: further columns."""
    terms = {
        "terms=box+assign": "box, assign",
        "terms=class+assign": DEFAULT,
        "terms=class+box": "class, box",
        "terms=class+assign+feature": "class, assign, feature",
        "terms=assign": "assign",
        "terms=class": "class",
        "unlabelled=runs/tiles/unlabelled;epochs=3": "with unlabelled tiles, 3 epochs",
    }
    return Table(
        f"distillation/{name}",
        {
            "arm": "{arm}",
            "seeds": "{map50_95:units}",
            "mAP50-95": "{map50_95:mean}",
            "over the baseline [95 %]": f"{{map50_95:gain {PLAIN}}}",
            "p (Holm)": f"{{map50_95:holm {PLAIN}}}",
            "by seed": f"{{map50_95:gains {PLAIN}}}",
            "gap share": f"{{map50_95:share {PLAIN}}}",
            **({"time": f"{{seconds:ratio {PLAIN}}}"} if last is None else last),
        },
        by=("arm",),
        names={PLAIN: "baseline", OURS: ours, **terms},
    )


def _flights(name: str, first: str) -> Table:
    """Return the table of scored flights; ``first``: header of their names."""
    columns = {
        first: "{flight}",
        "mAP50 offline": "{mAP50 offline}",
        "streaming": "{mAP50 streaming}",
        "recall offline": "{recall offline}",
        "recall streaming": "{recall streaming}",
        "age p50, p95 (ms)": "{age p50, p95 (ms)}",
        "frames due (Hz), processed": "{frames due (Hz), processed}",
    }
    return Table(f"simulation/{name}", columns)


def _pairings(csv: str) -> Table:
    """Return the table of both ways to pair predictions with ground truth on the same flights."""
    columns = {
        "m/s, frames/s, waiting": "{flight}",
        "mAP50 offline": "{mAP50 offline}",
        "sap": "{mAP50 sap}",
        "streaming": "{mAP50 streaming}",
        "recall offline": "{recall offline}",
        "recall sap": "{recall sap}",
        "recall streaming": "{recall streaming}",
        "age p50, p95 (ms)": "{age p50, p95 (ms)}",
    }
    return Table(f"simulation/{csv}", columns)


def _models(flights: str) -> Table:
    columns = {name: f"{{{name}}}" for name in ("model", "new", "base (all classes)")}
    return Table("retraining/models", columns, where={"flights": (flights,)})


GAINS = {
    "new gain": ("new_after", "new_before"),
    "base gain": ("guard_base_after", "guard_base_before"),
}


def _retraining(csv: str) -> Table:
    """Return the table of all arms of a retraining benchmark."""
    return Table(
        csv,
        {
            "arm": "{arm}",
            "seeds": "{new_after:units}",
            "labels": "{labels:.0f}",
            "accepted": "{accepted:true}",
            "new before → after": "{new_before:points} → {new_after:points}",
            "gain [per seed]": "{new gain:signed} [{new gain:signs}]",
            "base before → after": "{guard_base_before:points} → {guard_base_after:points}",
            "gain": "{base gain:signed}",
        },
        by=("arm",),
        differences=GAINS,
        names={
            "mined 100, true labels, nothing kept": "mined 100, true labels, `--keep 0`",
            "mined 100, true labels, 0.7 kept": "mined 100, true labels, `--keep 0.7`",
            "mined 100, true labels, 0.85 kept": "mined 100, true labels, `--keep 0.85`",
            "mined 100, teacher's labels, nothing kept": "mined 100, teacher's labels, `--keep 0`",
        },
    )


def _costs(random: str, *mined: str) -> Table:
    """Return the table of what labels of mined frames bring, divided by those of random ones."""
    kinds = ("frame", "box", "minute")
    columns = {f"per {kind}": f"{{gain_per_{kind}:times {random}}}" for kind in kinds}
    counts = {"seeds": "{gain_per_frame:units}", "labels": "{labels:.0f}"}
    where = {"arm": (random, *mined)}
    return Table("retraining", {"arm": "{arm}", **counts, **columns}, where, ("arm",))


def _ratios(csv: str, arms: tuple[str, ...], others: tuple[str, ...]) -> Table:
    """Return the table of gains of some arms, divided by those of others."""
    columns = {f"÷ {other}": f"{{new gain:times {other}}}" for other in others}
    where = {"arm": (*arms, *others)}
    return Table(
        csv,
        {"arm": "{arm}", "seeds": "{new gain:units}", **columns},
        where,
        ("arm",),
        differences=GAINS,
    )


def _gates(name: str) -> Table:
    """Return the table of the gates of an export that are not of one class or size."""
    gates = ("boxes lost, %", "boxes invented, %", "scores lowered, mean", "recall lost, %")
    cells = {}
    for gate in (*gates, "precision lost, %", "F1 lost, %"):
        measured, low, high = (
            f"{{{column}[{gate}]:{'.3f' if 'scores' in gate else '.2f'}}}"
            for column in ("measured", "low", "high")
        )
        cells[gate] = f"{measured} [{low}, {high}]"
    return Table(
        f"export/{name}-gates",
        {"precision": "{precision}", **cells},
        where={"of": ("",)},
        by=("precision",),
        keys=("gate",),
    )


TEST_SETS = ("hit-uav", "aerial-cars", "unicamp-people", "mean")

# Rows of other numbers of labels or steps are lines of their own.
BUDGET = ("labelled_frames", "steps")

TABLES: dict[str, Table] = {
    "few-labels": Table(
        "distillation/few-labels",
        {
            "labels": "{labelled_frames}",
            "steps": "{steps}",
            "subset": "{subset}",
            "student alone": "{map50_95[few]:points}",
            "hard pseudo-labels ≥ 0.4": "{map50_95[hard:0.4]:points}",
            "ours": "{map50_95[ours]:points}",
        },
        where={"subset": ("0", "1", "2"), "arm": ("few", "hard:0.4", "ours")},
        by=(*BUDGET, "subset"),
    ),
    "few-labels-means": Table(
        "distillation/few-labels",
        {
            "arm": "{arm}",
            "labels": "{labelled_frames}",
            "steps": "{steps}",
            "subsets": "{map50_95:units}",
            "mAP50-95": "{map50_95:mean}",
            "over few": "{map50_95:gain few}",
            "gap share": "{map50_95:share few}",
            "over hard:0.4": "{map50_95:gain hard:0.4}",
        },
        where={"arm": ("teacher", "few", "hard:0.4", "ours")},
        by=("arm", *BUDGET),
        pair=("subset", *BUDGET),
    ),
    "few-labels-sizes": Table(
        "distillation/few-labels",
        {
            "over hard:0.4": "{arm}",
            "labels": "{labelled_frames}",
            "steps": "{steps}",
            "subsets": "{map50_95:units}",
            "AP under 32 px": "{ap_small:gain hard:0.4}",
            "AP of 32 to 96 px": "{ap_medium:gain hard:0.4}",
        },
        where={"arm": ("few", "hard:0.4", "ours")},
        by=("arm", *BUDGET),
        pair=("subset", *BUDGET),
    ),
    "few-labels-tried": Table(
        "distillation/few-labels",
        {
            "arm": "{arm}",
            "labels": "{labelled_frames}",
            "steps": "{steps}",
            "mAP50-95": "{map50_95:points}",
            "mAP50": "{map50:points}",
        },
        where={"subset": ("", "0")},
    ),
    "cross-flight": Table(
        "distillation/cross-flight",
        {
            "arm": "{arm}",
            "labels": "{labelled_frames}",
            "steps": "{steps}",
            "mAP50-95": "{map50_95:points}",
            "mAP50": "{map50:points}",
            "AP under 32 px": "{ap_small:points}",
            "AP of 32 to 96 px": "{ap_medium:points}",
        },
    ),
    "demo": Table(
        "distillation/demo",
        {
            "images, labels, steps and batch": "{setting}",
            "student alone": "{map50_95[student alone]:points}",
            "distilled": "{map50_95[distilled]:points}",
            "teacher": "{map50_95[teacher]:points}",
            "gap share": "{map50_95[distilled]:share student alone}",
        },
        by=("setting",),
        pair=("setting",),
    ),
    "hit-uav-epyc": _arms(
        "hit-uav-epyc", FULL, {"all three minus it [95 %]": "{map50_95:lead distilled}"}
    ),
    "hit-uav": _arms("hit-uav", FULL),
    "hit-uav-half-teacher": _arms("hit-uav-epyc-half-teacher", DEFAULT),
    "hit-uav-bf16": _arms("hit-uav-bf16", FULL),
    "procedural": _arms("procedural", DEFAULT),
    "tiles": _arms("tiles", "distilled", {"AP < 16 px": "{ap_tiny:points}"}),
    "distillation-select": Table(
        "distillation/hit-uav-select",
        {
            "arm": "{arm}",
            "last fifth by name (night only)": "{map50_95[last fifth]:points}",
            "eight stretches": "{map50_95[eight stretches]:points}",
            "mAP50 there": "{map50[eight stretches]:points}",
        },
        by=("arm",),
        keys=("kept_apart",),
        names={PLAIN: "baseline"},
    ),
    "distillation-other": Table(
        "distillation/other",
        {
            "": "{setup}",
            "arm": "{arm}",
            "seeds": "{map50_95:units}",
            "mAP50-95": "{map50_95:mean}",
            "over the baseline [95 %]": f"{{map50_95:gain {PLAIN}}}",
        },
        by=("setup", "arm"),
        within=("setup",),
        names={PLAIN: "baseline", OURS: "class, box"},
    ),
    "gates-synthetic": _gates("synthetic"),
    "gates-aerial-cars": _gates("aerial-cars"),
    "gates-hit-uav": _gates("hit-uav"),
    "gates-hit-uav-int8": Table(
        "export/hit-uav-gates",
        {
            "INT8": "{gate}",
            "measured": "{measured:.2f} [{low:.2f}, {high:.2f}]",
            "limit": "{limit}",
            "boxes": "{count}",
            "outcome": "{outcome}",
        },
        where={
            "precision": ("int8",),
            "of": ("",),
            "gate": ("boxes moved > 3 px, %", "scores off > 0.1, %"),
        },
    ),
    "precisions": Table(
        "export/precisions",
        {
            "checkpoint": "{checkpoint}",
            "precision": "{precision}",
            "mAP50-95": "{mAP50-95}",
            "minus FP32": "{mAP50-95:minus fp32}",
            "MB": "{MB}",
            "p50, ms": "{ONNX Runtime p50, ms}",
            "drift p50, p99, px": "{drift p50, p99, px}",
            "RTX": "{RTX}",
        },
        keys=("precision",),
        pair=("checkpoint",),
        within=("checkpoint",),
    ),
    "teachers": Table(
        "default-model/teachers",
        {
            "model": "{model}",
            "parameters": "{parameters}",
            **{s: f"{{{s} map50:points}} ({{{s} map50_95:points}})" for s in TEST_SETS},
        },
    ),
    "specialists": Table(
        "default-model/teachers",
        {
            "model": "{model}",
            "hit-uav": "{hit-uav map50:of thermal}",
            "aerial-cars": "{aerial-cars map50:of visdrone}",
            "unicamp-people": "{unicamp-people map50:of visdrone}",
            "mean": "{mean map50:of visdrone}",
        },
        where={"arm": ("visdrone", "thermal", "default", "default-tiled")},
    ),
    "parts": Table(
        "default-model/parts",
        {
            "arm": "{arm}",
            "alpha": "{kept}",
            "windows": "{frames}",
            **{s: f"{{{s} map50:points}} [{{{s} map50:each}}]" for s in TEST_SETS},
        },
        by=("arm", "kept"),
    ),
    "dds": _flights("dds", "m/s, frames/s asked"),
    "dds-tiles": _flights("dds-tiles", "frames/s asked, tiling"),
    "computed": _flights("computed", "m/s, frames/s, waiting"),
    "computed-pairings": _pairings("computed-seed-2"),
    "computed-tiles": _flights("computed-tiles", "m/s, frames/s, waiting"),
    "retraining-models": _models("HIT-UAV"),
    "retraining-drawn-models": _models("synthetic"),
    "retraining-arms": _retraining("retraining"),
    "retraining-drawn-arms": _retraining("retraining-drawn"),
    "retraining-ratios": _ratios(
        "retraining",
        (
            "mined 100 by disagreement, true labels",
            "mined 100 by uncertainty, true labels",
            "mined 100 by novelty, true labels",
            "random 100, teacher's labels",
            "mined 100, teacher's labels",
            "random 100, adapted teacher's labels",
            "mined 100, teacher's labels from 0.3",
            "mined 100, teacher's labels from 0.45",
            "mined 100, adapted teacher's labels from 0.3",
        ),
        ("random 100, true labels", "mined 100, true labels"),
    ),
    "retraining-ratios-300": _ratios(
        "retraining",
        ("random 300, teacher's labels", "mined 300, teacher's labels"),
        ("random 300, true labels", "mined 300, true labels"),
    ),
    "retraining-costs": _costs(
        "random 100, true labels",
        "mined 100, true labels",
        "mined 100 by disagreement, true labels",
        "mined 100 by uncertainty, true labels",
        "mined 100 by novelty, true labels",
    ),
    "retraining-costs-300": _costs("random 300, true labels", "mined 300, true labels"),
    "selection": Table(
        "selection",
        {
            "selection": "{selection}",
            "seeds": "{gain_all:units}",
            "frames": "{frames:.0f}",
            "boxes": "{boxes:.0f}",
            "gain, points": "{gain_all:.1f}",
            "÷ random [95 %]": "{gain_all:times random}",
        },
        by=("selection",),
        keys=("selection",),
    ),
    "retraining-drawn-ratios": _ratios(
        "retraining-drawn",
        ("mined 100, true labels",),
        ("random 100, true labels", "random 32, true labels"),
    ),
    "guard-curve": Table(
        "guard-curve",
        {
            "flights": "{flights}",
            "labels": "{labels[guard new 0]}",
            "new -1": "{accepted[guard new -1]:points}",
            "new, equal": "{accepted[guard new 0]:points}",
            "new +2": "{accepted[guard new 2]:points}",
            "new +5": "{accepted[guard new 5]:points}",
            "new +10": "{accepted[guard new 10]:points}",
            "too few": "{not_enough_flights[guard new 0]:points}",
        },
        by=("flights", "frames_per_flight"),
        keys=("rule", "domain", "true_gain"),
    ),
    "guard-curve-means": Table(
        "guard-curve",
        {
            "rule": "{rule}",
            "judged on": "{domain}",
            "true gain": "{true_gain}",
            "accepted, mean of all settings, %": "{accepted:points}",
            "by setting": "{accepted:range}",
        },
        where={"true_gain": ("-1", "0")},
        by=("rule", "domain", "true_gain"),
    ),
}
