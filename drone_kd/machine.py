"""Facts about this computer: name, versions, power mode, clocks, temperatures, power, memory.

Paths and formats are those of NVIDIA's Jetson Linux Developer Guide, release 35 to 38. No Jetson
was there to try them: what is missing or looks different is left out.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from drone_kd.text import one_line

_PROC = Path("/proc")
_THERMAL = Path("/sys/class/thermal")
_L4T = Path("/etc/nv_tegra_release")
_SENSORS = Path("/sys/class/hwmon")
_CLOCKS = Path("/sys/class/devfreq")
_CPU_CLOCKS = Path("/sys/devices/system/cpu/cpufreq")
# Not on the PATH of cron and of some systemd units.
_NVPMODEL = "/usr/sbin/nvpmodel"
# Of a Jetson's GPU in devfreq: "17000000.gpu", "17000000.ga10b", "gpu-gpc-0".
_GPU_NAMES = re.compile("gpu|gv11b|ga10b|gb10b")


class GpuState(NamedTuple):
    """What the speed of a GPU's kernels depends on, beside the GPU; empty: unknown."""

    board: str
    power_mode: str
    driver: str


def machine_name() -> str:
    """Return the board or processor, which `platform` does not know, the cores and the system."""
    name = board()
    for line in _read(_PROC / "cpuinfo").splitlines():
        if not name and line.startswith("model name"):
            name = line.partition(":")[2].strip()
    cores = len(os.sched_getaffinity(0))
    return f"{name or platform.machine()}, {cores} cores, {platform.system()}"


def board() -> str:
    """Return the name of the board, e.g. "NVIDIA Jetson Orin Nano"; empty: it has none."""
    return one_line(_read(_PROC / "device-tree" / "model").rstrip("\0"), 100)


def l4t() -> str:
    """Return the version of Jetson Linux, e.g. "R36.4.3"; empty: another system."""
    found = re.match(r"# (R\d+) .*?REVISION: ([\d.]+)", _read(_L4T))
    return f"{found[1]}.{found[2]}" if found else ""


def gpu_driver() -> str:
    """Return the version of Jetson Linux, or of NVIDIA's kernel driver; empty: there is none.

    A Jetson's driver comes with Jetson Linux, and its module may be loaded late after a start.
    """
    if version := l4t():
        return version
    line = _read(_PROC / "driver" / "nvidia" / "version").partition("\n")[0]
    found = re.search(r"\d+\.\d+(\.\d+)?", line)
    return found[0] if found else ""


def gpu_clocks_mhz() -> dict[str, int]:
    """Return the "lowest", "current" and "highest" clock of a Jetson's GPU; empty: unknown.

    The highest one depends on the power mode and, in a hot board, on thermal limits.
    """
    for device in sorted(_CLOCKS.glob("*")):
        if _GPU_NAMES.search(device.name):
            return _clocks(device, 1e6, lowest="min_freq", current="cur_freq", highest="max_freq")
    return {}


def gpu_state() -> GpuState:
    """Return what the speed of the GPU's kernels depends on."""
    return GpuState(board(), power_mode(), gpu_driver())


def cpu_clocks_mhz() -> dict[str, dict[str, int]]:
    """Return the clocks of each group of CPU cores as in `gpu_clocks_mhz`, e.g. of "policy0"."""
    names = {"lowest": "min_freq", "current": "cur_freq", "highest": "max_freq"}
    files = {name: f"scaling_{file}" for name, file in names.items()}
    return {
        group.name: clocks
        for group in sorted(_CPU_CLOCKS.glob("policy*"))
        if (clocks := _clocks(group, 1e3, **files))
    }


def _clocks(folder: Path, unit: float, **files: str) -> dict[str, int]:
    """Return the clocks in files, in MHz; `unit`: of their numbers, per MHz."""
    texts = {name: _read(folder / file).strip() for name, file in files.items()}
    return {name: round(int(text) / unit) for name, text in texts.items() if text.isdecimal()}


def power_w(sensors: Path = _SENSORS) -> dict[str, float]:
    """Return the power of each rail of the INA3221 sensors in W, e.g. {"VDD_IN": 5.2}."""
    rails = {}
    for sensor in sorted(sensors.glob("hwmon*")):
        if _read(sensor / "name").strip() != "ina3221":
            continue
        for label in sorted(sensor.glob("in[1-3]_label")):
            number = label.name[2]
            values = [_read(sensor / f"{kind}{number}_input").strip() for kind in ("in", "curr")]
            if all(value.isdecimal() for value in values):
                millivolts, milliamperes = map(int, values)
                rails[one_line(_read(label), 40)] = millivolts * milliamperes / 1e6
    return rails


def memory_mb() -> dict[str, float]:
    """Return "total", "available" and "swap" memory of this computer in MB (10^6 bytes)."""
    names = {"MemTotal": "total", "MemAvailable": "available", "SwapTotal": "swap"}
    found = re.findall(r"^(\w+): +(\d+) kB", _read(_PROC / "meminfo"), re.MULTILINE)
    return {names[name]: int(kib) * 1024 / 1e6 for name, kib in found if name in names}


def host_name() -> str:
    """Return the name of this computer on the network, printable."""
    return one_line(platform.node(), 100)


def power_mode() -> str:
    """Return a Jetson's power mode, e.g. "MAXN"; empty if it is not readable."""
    command = [shutil.which("nvpmodel") or _NVPMODEL, "-q"]
    try:
        output = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"^(?:NV )?Power Mode:(.*)", output, re.MULTILINE)
    return found[1].strip() if found else ""


def temperatures_c(zones: Path = _THERMAL) -> dict[str, float]:
    """Return the temperature of each readable thermal zone in °C."""
    temperatures = {}
    for zone in sorted(zones.glob("thermal_zone*")):
        name, millidegrees = _read(zone / "type").strip(), _read(zone / "temp").strip()
        if name and millidegrees.lstrip("-").isdecimal():
            temperatures[name] = int(millidegrees) / 1000
    return temperatures


def process_memory_mb() -> float:
    """Return the resident memory of this process in MB (10^6 bytes)."""
    pages = int(_read(_PROC / "self" / "statm").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # missing, or a zone that is asleep
        return ""
