"""Facts about this computer: name, power mode, temperatures, memory."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from drone_kd.text import one_line

_PROC = Path("/proc")
_THERMAL = Path("/sys/class/thermal")


def machine_name() -> str:
    """Return the board or processor, which `platform` does not know, the cores and the system."""
    name = _read(_PROC / "device-tree" / "model").rstrip("\0")
    for line in _read(_PROC / "cpuinfo").splitlines():
        if not name and line.startswith("model name"):
            name = line.partition(":")[2].strip()
    cores = len(os.sched_getaffinity(0))
    return f"{name or platform.machine()}, {cores} cores, {platform.system()}"


def host_name() -> str:
    """Return the name of this computer on the network, printable."""
    return one_line(platform.node(), 100)


def power_mode() -> str:
    """Return a Jetson's power mode, e.g. "MAXN"; empty if it is not readable."""
    command = ["nvpmodel", "-q"]
    try:
        output = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    modes = [line.partition(":")[2].strip() for line in output.splitlines() if "Mode:" in line]
    return modes[0] if modes else ""


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
