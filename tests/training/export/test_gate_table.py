from drone_kd_training.export.flight_gates import INVALID
from drone_kd_training.export.gate_table import gate_table, undecided
from tiny_model import tiny_spec


def gate(measured: float, missing: float = 0, limit: float = 10) -> dict[str, float]:
    interval = {"low": measured - 1, "high": measured + 1}
    return {"measured": measured, "limit": limit, **interval, "count": 1200, "missing": missing}


def test_table_shows_the_overall_gates_and_what_does_not_hold():
    gates = {
        "graph problems": {"measured": 0, "limit": 0},
        "box, px, 50 % of rows": {"measured": 0.25, "limit": 2},
        INVALID: {"measured": 2, "limit": 0, "count": 60},
        "boxes lost, %": gate(9.5, missing=1500),
        "boxes lost, %: class car": gate(0),
        "boxes lost, %: class bus": gate(30),
        "boxes lost, %: tiny": gate(0, missing=12),
        "boxes lost, %: large": gate(9.99, missing=10_000),
    }
    spec = tiny_spec(gates=gates)
    assert gate_table(spec).splitlines() == [
        "gate                         measured     up to  at most    count",
        "graph problems                      0                  0           holds",
        "box, px, 50 % of rows            0.25                  2           holds",
        "frames with invalid output          2                  0       60  FAILS",
        "boxes lost, %                     9.5      10.5       10    1,200  not enough data "
        "(1,500 missing)",
        "boxes lost, %: class bus           30        31       10    1,200  FAILS",
        "by class and size: 1 of 4 gates hold",
        "boxes lost, %: not enough data for tiny (12 missing), large (over 10,000 missing)",
    ]
    assert undecided(spec).startswith("not enough data for 3 of 8 gates")


def test_table_without_data_says_what_was_not_measured():
    spec = tiny_spec(gates={"graph problems": {"measured": 0, "limit": 0}})
    assert "not measured; give --data" in gate_table(spec).splitlines()[-1]
    assert undecided(spec) == ""


def test_gates_on_unlabelled_data_ask_for_labels():
    lost = {"boxes lost, %": gate(0), "recall lost, %": gate(0, missing=35) | {"count": 0}}
    line = undecided(tiny_spec(gates=lost))
    assert line.startswith("not enough data for 1 of 2 gates")
    assert line.endswith("label objects of the model's classes in the validation split")
    lost["recall lost, %"]["count"] = 3
    assert undecided(tiny_spec(gates=lost)).endswith("add images to the validation split")


def test_many_classes_without_data_are_shortened():
    gates = {f"boxes lost, %: class {i}": gate(0, missing=35) for i in range(100)}
    assert gate_table(tiny_spec(gates=gates)).count("\n") <= 4
    assert "and 92 more" in gate_table(tiny_spec(gates=gates))
