"""Name, temperatures, memory and power mode of a computer."""

from drone_kd import machine


def test_jetson_is_named_by_its_board(tmp_path, monkeypatch):
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree" / "model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert machine.machine_name().startswith("NVIDIA Jetson Orin Nano, ")


def test_this_computer_has_a_name_and_memory():
    assert "cores, Linux" in machine.machine_name()
    assert 1 < machine.process_memory_mb() < 100_000


def test_unreadable_thermal_zones_are_left_out(tmp_path):
    for number, (name, temperature) in enumerate(
        [("cpu-thermal", "51500\n"), ("cv0-thermal", ""), ("cold", "-5000")]
    ):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(f"{name}\n")
        (zone / "temp").write_text(temperature)
    (tmp_path / "thermal_zone7").mkdir()
    assert machine.temperatures_c(tmp_path) == {"cpu-thermal": 51.5, "cold": -5.0}


def test_power_mode_of_nvpmodel(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.power_mode() == ""
    command = tmp_path / "nvpmodel"
    command.write_text("#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n")
    command.chmod(0o755)
    assert machine.power_mode() == "MAXN_SUPER"
    command.write_text("#!/bin/sh\nexit 1\n")
    assert machine.power_mode() == ""
