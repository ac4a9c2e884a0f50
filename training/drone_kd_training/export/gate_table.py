# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gates of a model file as text."""

from __future__ import annotations

from drone_kd.core.model_spec import ModelSpec
from drone_kd_training.export.flight_gates import GROUP, INVALID
from drone_kd_training.export.gate_outcomes import FAILS, HOLDS, MAX_MISSING, NOT_ENOUGH, outcome

_WIDTH, _SHOWN = 27, 8


def gate_table(spec: ModelSpec) -> str:
    """Return the gates, one line each; those of a class or size only if they do not hold.

    "up to" is the upper end of the 95 % interval, "count" a number of objects or images.
    """
    lines = [f"{'gate':<{_WIDTH}}{'measured':>10}{'up to':>10}{'at most':>9}{'count':>9}"]
    lines += [
        _line(name, gate)
        for name, gate in spec.gates.items()
        if GROUP not in name or outcome(gate) == FAILS
    ]
    grouped = [name for name in spec.gates if GROUP in name]
    if grouped:
        held = sum(outcome(spec.gates[name]) == HOLDS for name in grouped)
        lines.append(f"by class and size: {held} of {len(grouped)} gates hold")
        lines += _short_of_data(spec)
    if INVALID not in spec.gates:
        lines.append("detections in flight: not measured; give --data data.yaml")
    return "\n".join(lines)


def undecided(spec: ModelSpec) -> str:
    """Return one line on the gates that lack data, or an empty text."""
    number = sum(outcome(gate) == NOT_ENOUGH for gate in spec.gates.values())
    if not number:
        return ""
    remedy = "add images to the validation split"
    if spec.gates.get("recall lost, %", {}).get("count") == 0:
        remedy = "label objects of the model's classes in the validation split"
    return (
        f"not enough data for {number} of {len(spec.gates)} gates, which neither hold nor fail: "
        f"{remedy}"
    )


def _line(name: str, gate: dict[str, float]) -> str:
    verdict = outcome(gate)
    if verdict == NOT_ENOUGH:
        verdict += f" ({_missing(gate)})"
    high = f"{gate['high']:.3g}" if "high" in gate else ""
    count = f"{gate['count']:,.0f}" if "count" in gate else ""
    figures = f"{gate['measured']:>10.4g}{high:>10}{gate['limit']:>9g}{count:>9}"
    return f"{name:<{_WIDTH}}{figures}  {'FAILS' if verdict == FAILS else verdict}"


def _missing(gate: dict[str, float]) -> str:
    number = gate["missing"]
    return f"{number:,.0f} missing" if number < MAX_MISSING else f"over {number:,.0f} missing"


def _short_of_data(spec: ModelSpec) -> list[str]:
    """Return a line per kind of gate: the classes and sizes that miss objects."""
    missing: dict[str, list[str]] = {}
    for name, gate in spec.gates.items():
        kind, _, group = name.partition(GROUP)
        if group and outcome(gate) == NOT_ENOUGH:
            missing.setdefault(kind, []).append(f"{group} ({_missing(gate)})")
    lines = []
    for kind, shown in missing.items():
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        lines.append(f"{kind}: {NOT_ENOUGH} for {', '.join(shown[:_SHOWN])}{more}")
    return lines
