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
    monkeypatch.setattr(machine, "_NVPMODEL", str(tmp_path / "sbin"))
    assert machine.power_mode() == ""
    command = tmp_path / "nvpmodel"
    command.write_text(
        "#!/bin/sh\necho 'NV Fan Mode:quiet'\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n"
    )
    command.chmod(0o755)
    assert machine.power_mode() == "MAXN_SUPER"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert machine.power_mode() == ""
    monkeypatch.setattr(machine, "_NVPMODEL", str(command))
    assert machine.power_mode() == "MAXN_SUPER"
    command.write_text("#!/bin/sh\nexit 1\n")
    assert machine.power_mode() == ""


def test_versions_of_a_jetson(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_L4T", tmp_path / "release")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert machine.l4t() == machine.gpu_driver() == machine.board() == ""
    release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: x\n"
    (tmp_path / "driver" / "nvidia").mkdir(parents=True)
    (tmp_path / "driver" / "nvidia" / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n"
    )
    assert machine.l4t() == "" and machine.gpu_driver() == "540.4.0"
    # A Jetson's module may not be loaded yet: the driver's name must not depend on it.
    (tmp_path / "release").write_text(release)
    assert machine.l4t() == machine.gpu_driver() == "R36.4.3"


def write_files(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def test_clocks_of_gpu_and_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CLOCKS", tmp_path / "devfreq")
    monkeypatch.setattr(machine, "_CPU_CLOCKS", tmp_path / "cpufreq")
    assert machine.gpu_clocks_mhz() == machine.cpu_clocks_mhz() == {}
    gpu = {"min_freq": 306000000, "cur_freq": 306000000, "max_freq": 1020000000}
    write_files(tmp_path / "devfreq" / "17000000.gpu", **gpu)
    write_files(tmp_path / "devfreq" / "15480000.vic", max_freq=1)
    assert machine.gpu_clocks_mhz() == {"lowest": 306, "current": 306, "highest": 1020}
    write_files(tmp_path / "cpufreq" / "policy0", scaling_max_freq=1728000, scaling_cur_freq="?")
    write_files(tmp_path / "cpufreq" / "policy4")
    assert machine.cpu_clocks_mhz() == {"policy0": {"highest": 1728}}


def test_power_of_the_rails(tmp_path):
    rails = {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1200}
    write_files(tmp_path / "hwmon1", name="ina3221", in2_label="asleep", **rails)
    write_files(tmp_path / "hwmon2", name="other", **rails)
    assert machine.power_w(tmp_path) == {"VDD_IN": 6.0}


def test_memory_of_this_computer():
    memory = machine.memory_mb()
    assert memory["total"] > memory["available"] > 0 and memory["swap"] >= 0
