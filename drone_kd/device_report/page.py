"""The report as a Markdown page, short enough for an issue."""

from __future__ import annotations

from typing import Any

# GitHub's limit of a text is 65,536 characters.
MAX_CHARACTERS = 60_000
_SHOWN = 300


def write_page(report: dict[str, Any]) -> str:
    """Return the page of a report.json."""
    steps = report["steps"]
    lines = [
        f"# Device report: {report['verdict']}",
        "",
        f"{report['written']}, `drone-kd report`, {len(steps)} steps. Attach `report.json` and "
        "`layers-*.json`.",
        "",
        "| device | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in report["machine"].items()),
        *(f"| {name} | {_cell(value)} |" for name, value in report["versions"].items()),
        "",
        "## Models",
        "",
        "| model | precision | build s | golden rows off | boxes missing, px, score off "
        "| TensorRT ms p50, p99 | inference ms | ONNX Runtime ms |",
        "|---|---|---|---|---|---|---|---|",
        *(_model_row(label, steps) for label in report["models"]),
        "",
        "## Steps",
        "",
        "| step | status | s | details |",
        "|---|---|---|---|",
        *(
            f"| {_cell(name)} | {step['status']} | {step['seconds']:g} | {_details(step)} |"
            for name, step in steps.items()
        ),
    ]
    text = "\n".join(lines) + "\n"
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}\n…\n"


def _model_row(label: str, steps: dict[str, Any]) -> str:
    results = {
        kind: steps.get(f"{kind}: {label}", {}).get("result", {})
        for kind in ("build", "tensorrt", "agreement", "onnxruntime")
    }
    build, tensorrt, agreement, cpu = results.values()
    golden = tensorrt.get("golden") or cpu.get("golden")
    cells = [
        label,
        tensorrt.get("precision") or cpu.get("precision"),
        build.get("seconds") if build.get("built") else "in the cache" if build else None,
        f"{golden['off']} of {golden['rows']}" if golden else None,
        f"{agreement['missing']} of {agreement['boxes']}, {agreement['drift_px']:g}, "
        f"{agreement['drift_score']:g}"
        if agreement
        else None,
        _times(tensorrt, "total", "p50", "p99"),
        _times(tensorrt, "infer", "p50"),
        _times(cpu, "total", "p50"),
    ]
    return "| " + " | ".join(_cell("-" if cell is None else cell) for cell in cells) + " |"


def _times(result: dict[str, Any], stage: str, *percentiles: str) -> str | None:
    if "times_ms" not in result:
        return None
    return ", ".join(f"{result['times_ms'][stage][name]:.2f}" for name in percentiles)


def _details(step: dict[str, Any]) -> str:
    """Return the error of a step, or the numbers and texts of its result."""
    if step["error"]:
        return _cell(step["error"])
    left_out = ("times_ms", "golden", "input_shape")
    result = {name: value for name, value in step["result"].items() if name not in left_out}
    return _cell(result)


def _cell(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    if isinstance(value, dict):
        if value.keys() == {"lowest", "mean", "highest"}:
            return f"{value['lowest']:g} to {value['highest']:g}"
        value = "; ".join(f"{name} {_cell(item)}" for name, item in value.items())
    text = str("not readable" if value in ("", None) else value)
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
