"""Write tests/data/tensorrt_names.json: the names in each TensorRT version's Python module.

    python tests/helpers/tensorrt_names.py

Downloads the four binding wheels with pip and imports each with empty libraries in place of
libnvinfer and related ones: all names exist, but nothing can run. Needs a C compiler, x86-64 Linux
and Python 3.10 or 3.11, the last version with a wheel of TensorRT 8.6.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TABLE = Path(__file__).parents[1] / "data" / "tensorrt_names.json"

WHEELS = {
    "8.6": "tensorrt-bindings==8.6.1",
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.13": "tensorrt-cu12-bindings==10.13.3.9",
    "11.4": "tensorrt-cu13-bindings==11.4.0.106",
}

# Classes that drone_kd may use (test_names.py).
CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IProgressMonitor",
    "ITimingCache",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")

LIST_NAMES = f"""
import json, tensorrt_bindings
print(json.dumps({{
    name: " ".join(n for n in dir(getattr(tensorrt_bindings, name)) if not n.startswith("_"))
    for name in {CLASSES!r} if hasattr(tensorrt_bindings, name)
}}))
"""


def load_table() -> dict[str, dict[str, set[str]]]:
    """Return version to class to member names, from the committed table."""
    versions = json.loads(TABLE.read_text())["names"]
    return {
        version: {cls: set(names.split()) for cls, names in classes.items()}
        for version, classes in versions.items()
    }


def names_in(wheel: str, folder: Path) -> dict[str, str]:
    """Return class name to public member names, separated by spaces, of one wheel."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, wheel], check=True)
    for file in folder.glob("*.whl"):
        zipfile.ZipFile(file).extractall(folder)
    module = folder / "tensorrt_bindings" / "tensorrt.so"
    needed = _readelf("--dynamic", module)
    undefined = [
        name
        for name in (
            line.split()[-1] for line in _readelf("--dyn-syms", module) if " UND " in line
        )
        # Neither Python's nor versioned, unlike the names of the C and C++ libraries.
        if "@" not in name and name.startswith(("create", "get", "init", "_ZN"))
    ]
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in undefined))
    for line in needed:
        library = line.partition("[")[2].partition("]")[0]
        if "NEEDED" in line and library.startswith(tuple(f"lib{name}.so" for name in LIBRARIES)):
            options = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library)]
            subprocess.run(["cc", "-w", str(source), *options], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    listed = subprocess.run(
        [sys.executable, "-c", LIST_NAMES],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(listed.stdout)


def _readelf(option: str, path: Path) -> list[str]:
    command = ["readelf", "--wide", option, str(path)]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()


def main() -> None:
    table = {}
    for version, wheel in WHEELS.items():
        with tempfile.TemporaryDirectory() as folder:
            table[version] = names_in(wheel, Path(folder))
        print(f"{wheel}: {len(table[version])} of {len(CLASSES)} classes", flush=True)
    TABLE.write_text(json.dumps({"wheels": WHEELS, "names": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
