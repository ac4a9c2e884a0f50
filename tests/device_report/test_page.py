from drone_kd.device_report.page import MAX_CHARACTERS, write_page

SPEED = {
    "precision": "fp16",
    "golden": {"off": 1, "rows": 300},
    "times_ms": {"total": {"p50": 7.5, "p99": 9.25}, "infer": {"p50": 4.0, "p99": 5.0}},
}
CLOCK = {"lowest": 306, "mean": 500.5, "highest": 1020}


def step(result=None, error="", status="pass"):
    return {"status": status, "seconds": 1.5, "result": result or {}, "error": error}


def page(**steps):
    report = {
        "verdict": "incomplete",
        "written": "2026-01-01",
        "machine": {"machine": "Orin | Nano", "power mode": "", "power W": {}},
        "versions": {"numpy": "2.0"},
        "models": ["m.onnx"],
        "steps": {f"{name}: m.onnx": value for name, value in steps.items()},
    }
    return write_page(report)


def test_row_of_a_model():
    text = page(
        build=step({"built": True, "seconds": 312.5}),
        tensorrt=step(SPEED),
        agreement=step({"missing": 0, "boxes": 42, "drift_px": 0.25, "drift_score": 0.004}),
    )
    row = "| m.onnx | fp16 | 312.5 | 1 of 300 | 0 of 42, 0.25, 0.004 | 7.50, 9.25 | 4.00 | - |"
    assert row in text.splitlines()


def test_row_of_a_model_without_results():
    row = "| m.onnx | - | - | - | - | - | - | - |"
    assert row in page(build=step(error="killed", status="fail")).splitlines()


def test_steps_show_errors_or_results():
    text = page(build=step(error="a|b\nc", status="fail"), soak=step({"gpu_mhz": {"now": CLOCK}}))
    assert r"| build: m.onnx | fail | 1.5 | a\|b c |" in text
    assert "| soak: m.onnx | pass | 1.5 | gpu_mhz now 306 to 1020 |" in text
    assert r"Orin \| Nano" in text and "| power mode | not readable |" in text


def test_page_fits_an_issue():
    steps = {f"step{number}": step(error="x" * 1000) for number in range(1000)}
    assert len(page(**steps)) < MAX_CHARACTERS + 10
