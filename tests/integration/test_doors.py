"""Files and messages of others enter through one function per kind, which checks and limits them.

Here the bare functions of the libraries are forbidden elsewhere; ruff's rules S (bandit) forbid
`eval`, `exec`, shells and the like. A new exception needs a reason in `DOORS`.
"""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("drone_kd", "training", "examples", "launch", "benchmarks")
FOLDERS += ("worlds", "interfaces", "docs")

# Forbidden name, or name of a method as "*.method": files or folders that may use it, and why.
# Where all of a module is forbidden, it ends with a dot: "pickle."; "*" is `from x import *`.
_MEASURE = {"benchmarks/": "run by hand, on files that it wrote itself"}
_IMAGES = {
    "drone_kd/media/compressed_images.py": "the function for encoded images",
    "drone_kd/simulation/scene/sensor.py": "its own JPEG, encoded a line above",
    **_MEASURE,
}
_VIDEOS = {"drone_kd/media/videos.py": "the functions for videos, streams and cameras"}
_MODELS = {"drone_kd/backends/onnx_runtime.py": "runs the bytes of read_model_file"}
_CHECKPOINTS = {"training/drone_kd_training/models/": "the function for checkpoints"}
_JSON = {
    "drone_kd/parsing.py": "the functions for JSON and YAML",
    **_MEASURE,
}
_PICKLES = {
    "training/drone_kd_training/mining/ray_pipeline.py": "between processes that it started",
    **_CHECKPOINTS,
}
_ARCHIVES = {"training/drone_kd_training/mining/annotation_": "the functions for annotations"}
_HOME = {"drone_kd/paths.py": "the function for paths of users"}
_GRAPHS = {"training/drone_kd_training/export/export.py": "a graph that it wrote itself"}
_TRAINER = {"training/drone_kd_training/distillation/trainer.py": "a base class; reads no file"}
_DOWNLOADS = {"training/drone_kd_training/mining/remote_flights.py": "the function for URLs"}
_MODULES = {
    "drone_kd/cli.py": "one of its own commands",
    "drone_kd/ros/recording/message_definitions.py": "of an installed message class",
}
_TABLES = {"training/drone_kd_training/teachers/prediction_cache.py": "limited, without pickles"}
DOORS: dict[str, dict[str, str]] = {
    "*": {},
    "cv2.imread": _IMAGES,
    "cv2.imreadmulti": {},
    "cv2.imreadanimation": {},
    "cv2.imreadWithMetadata": {},
    "cv2.imdecode": _IMAGES,
    "cv2.imdecodemulti": {},
    "cv2.imdecodeanimation": {},
    "cv2.imdecodeWithMetadata": {},
    "cv2.readOpticalFlow": {},
    "cv2.VideoCapture": _VIDEOS,
    "cv2.FileStorage": {},
    "av.": {"drone_kd/media/video_streams.py": "the function for packets of video"},
    "cv2.dnn.": {},
    "PIL.": {"docs/make_hero.py": "writes a GIF from frames in memory"},
    "onnxruntime.InferenceSession": _MODELS,
    "onnx.load": {},
    "onnx.load_from_string": {},
    "onnx.load_model": {},
    "onnx.load_model_from_string": _GRAPHS,
    "onnx.load_tensor": {},
    "onnx.load_tensor_from_string": {},
    "onnx.external_data_helper.": {},
    "torch.load": {},
    "torch.from_file": {},
    "torch.serialization.load": {},
    "torch.jit.load": {},
    "torch.package.": {},
    "torchvision.io.": {},
    "torch.hub.": {"training/drone_kd_training/isolation.py": "forbids its downloads"},
    "ultralytics.YOLO": {},
    "ultralytics.YOLOE": {},
    "ultralytics.YOLOWorld": {},
    "ultralytics.RTDETR": {},
    "ultralytics.SAM": {},
    "ultralytics.FastSAM": {},
    "ultralytics.NAS": {},
    "ultralytics.data.loaders.": {},
    "ultralytics.engine.model.": {},
    "ultralytics.models.": _TRAINER,
    "ultralytics.nn.autobackend.": {},
    "ultralytics.utils.patches.": {},
    "ultralytics.nn.tasks.load_checkpoint": _CHECKPOINTS,
    "ultralytics.nn.tasks.yaml_model_load": _CHECKPOINTS,
    "ultralytics.nn.tasks.parse_model": _CHECKPOINTS,
    "ultralytics.nn.tasks.torch_safe_load": _CHECKPOINTS,
    "json.load": _JSON,
    "json.loads": _JSON,
    "yaml.load": _JSON,
    "yaml.safe_load": _JSON,
    "yaml.full_load": {},
    "yaml.unsafe_load": {},
    "yaml.load_all": {},
    "yaml.safe_load_all": {},
    "yaml.full_load_all": {},
    "yaml.unsafe_load_all": {},
    "yaml.compose": _JSON,
    "yaml.compose_all": {},
    "numpy.load": _TABLES,
    "numpy.lib.format.": {},
    "numpy.lib.npyio.": {},
    "numpy.memmap": {},
    "numpy.fromfile": {},
    "numpy.fromregex": {},
    "numpy.loadtxt": {},
    "numpy.genfromtxt": {},
    "pickle.": _PICKLES,
    "marshal.": {},
    "shelve.": {},
    "joblib.": {},
    "dill.": {},
    "cloudpickle.": {},
    "zipfile.": {**_ARCHIVES, **_CHECKPOINTS},
    "tarfile.": {},
    "gzip.": {},
    "bz2.": {},
    "lzma.": {},
    "shutil.unpack_archive": {},
    "xml.etree.ElementTree.parse": {},
    "xml.etree.ElementTree.iterparse": {},
    "xml.etree.ElementTree.fromstring": _ARCHIVES,
    "xml.etree.ElementTree.XML": {},
    "xml.dom.": {},
    "xml.sax.": {},
    "sqlite3.dbapi2.": {},
    "sqlite3.connect": {"drone_kd/media/sqlite_bags.py": "the function for SQLite bags"},
    "tempfile.gettempdir": {"drone_kd/paths.py": "where there is no home; a private folder in it"},
    "tempfile.mktemp": {},
    "os.path.expanduser": {},
    "os.system": {},
    "os.popen": {},
    "*.expanduser": _HOME,
    "*.extract": {},
    "*.extractall": {},
    "importlib.import_module": _MODULES,
    "importlib.machinery.": {},
    "importlib.util.module_from_spec": {},
    "runpy.": {},
    "aiohttp.": {},
    "fsspec.": _DOWNLOADS,
    "httpx.": {},
    "requests.": {},
    "urllib.request.": {},
    "urllib3.": {},
    "http.client.": {},
    "ftplib.": {},
}


def files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def used_in(path: Path) -> tuple[tuple[str, int], ...]:
    """Return what `used` yields for a file."""
    return tuple(used(path.read_text(encoding="utf-8")))


def used(source: str) -> Iterator[tuple[str, int]]:
    """Yield the full names that a module uses outside annotations, and their lines.

    A method of a value is "*.method"; a call of `torch.load` with weights_only=True is left out,
    because it runs no code.
    """
    tree = ast.parse(source)
    known = dict(_imports(tree))
    left_out = {id(node) for part in ast.walk(tree) for node in _left_out(part, known)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in node.names:
                module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                yield f"{module}{name.name}", node.lineno
        elif isinstance(node, (ast.Name, ast.Attribute)) and (name := _full_name(node, known)):
            yield name, node.lineno


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each name that an import binds, and what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                first = name.name.partition(".")[0]
                yield name.asname or first, name.name if name.asname else first
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                yield name.asname or name.name, f"{node.module}.{name.name}"


def _left_out(node: ast.AST, known: dict[str, str]) -> Iterator[ast.AST]:
    annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    for annotation in filter(None, annotations):
        yield from ast.walk(annotation)
    if isinstance(node, ast.Call) and _full_name(node.func, known) == "torch.load":
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        safe = given.get("weights_only")
        if isinstance(safe, ast.Constant) and safe.value is True:
            yield node.func
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        yield node


def _full_name(node: ast.AST, known: dict[str, str]) -> str:
    """Return the dotted name of an expression; "" if it is a name that no import binds."""
    if isinstance(node, ast.Name):
        return known.get(node.id, "")
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, known) or '*'}.{node.attr}"
    return ""


def forbidden(name: str) -> str:
    """Return the entry of `DOORS` that forbids a name, or ""."""
    if name.endswith(".*"):
        return "*"
    for entry in (name, f"*.{name.rpartition('.')[2]}"):
        if entry in DOORS and (entry == name or name.startswith("*.")):
            return entry
    return next((e for e in DOORS if e.endswith(".") and f"{name}.".startswith(e)), "")


def allowed(entry: str, path: str) -> str:
    """Return the exception of an entry that covers a file, or ""."""
    return next((place for place in DOORS[entry] if path.startswith(place)), "")


def test_bare_functions_are_used_only_where_they_are_checked() -> None:
    wrong = []
    for path in files():
        relative = str(path.relative_to(ROOT))
        for name, line in used_in(path):
            entry = forbidden(name)
            if entry and not allowed(entry, relative):
                wrong.append(f"{relative}:{line}: {name}")
    assert wrong == []


def test_each_exception_is_needed() -> None:
    needed = {
        (entry, allowed(entry, str(path.relative_to(ROOT))))
        for path in files()
        for name, _ in used_in(path)
        if (entry := forbidden(name))
    }
    places = {place for entry, place in needed if place}
    assert {place for doors in DOORS.values() for place in doors} == places


@pytest.mark.parametrize("entry", sorted(DOORS))
def test_each_entry_forbids_what_it_names(entry: str) -> None:
    if entry == "*":
        source = "from module import *\n"
    elif entry.startswith("*."):
        source = f"def f(value):\n    return value.{entry[2:]}()\n"
    else:
        source = f"import {entry.partition('.')[0]}\n{entry.rstrip('.')}.x\n"
    assert entry in {forbidden(name) for name, _ in used(source)}


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import cv2\ncv2.imread('x')", 2),
        ("import cv2 as c\nread = c.imread", 2),
        ("from cv2 import imread", 1),
        ("from cv2 import imread as read\nread('x')", 1),
        ("def f():\n    from pickle import loads", 2),
        ("import numpy as np\nnp.load('x')", 2),
        ("import xml.etree.ElementTree as ET\nET.parse('x')", 2),
        ("from xml.etree import ElementTree\nElementTree.parse('x')", 2),
        ("import torch\ntorch.load('x')", 2),
        ("import torch\ntorch.load('x', weights_only=False)", 2),
        ("import torch\ntorch.load('x', weights_only=1)", 2),
        ("from pathlib import Path\nPath('x').expanduser()", 2),
        ("import os\nos.path.expanduser('x')", 2),
        ("import urllib.request\nurllib.request.urlopen('x')", 1),
        ("from urllib import request", 1),
        ("import zipfile", 1),
        ("from cv2 import *", 1),
        ("import numpy as np\nnp.lib.format.read_array(file)", 2),
        ("import torch.serialization\ntorch.serialization.load('x')", 2),
        ("from torch import serialization as s\ns.load('x')", 2),
        ("from ultralytics.models import YOLO", 1),
        ("from ultralytics.models.yolo.model import YOLO", 1),
        ("from ultralytics.engine.model import Model", 1),
        ("from ultralytics.utils.patches import torch_load", 1),
        ("from sqlite3 import dbapi2", 1),
        ("import xml.dom.minidom", 1),
    ],
)
def test_alias_and_import_forms_are_recognised(source: str, line: int) -> None:
    assert min(at for name, at in used(source) if forbidden(name)) == line


@pytest.mark.parametrize(
    "source",
    [
        "import cv2\ndef f(capture: cv2.VideoCapture) -> cv2.VideoCapture: ...",
        "import torch\ntorch.load('x', weights_only=True)",
        "import json\njson.dumps({})",
        "load = 1\nload",
        "from drone_kd.media.image_files import read_image\nread_image('x')",
        "import urllib.parse\nurllib.parse.urlsplit('x')",
    ],
)
def test_other_uses_are_allowed(source: str) -> None:
    assert not [name for name, _ in used(source) if forbidden(name)]


@pytest.mark.skipif(not find_spec("ruff"), reason="needs ruff: requirements/dev.txt")
def test_ruff_forbids_what_runs_code() -> None:
    source = """
import os, pickle, subprocess, tempfile
import yaml
eval("1")
exec("1")
os.system("ls")
subprocess.run("ls *", shell=True)
pickle.loads(b"")
yaml.load("", yaml.Loader)
tempfile.mktemp()
"""
    options = ["--stdin-filename", "drone_kd/new.py", "--output-format", "json", "--no-cache", "-"]
    command = [sys.executable, "-m", "ruff", "check", *options]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)
    found = {problem["code"] for problem in json.loads(done.stdout)}
    # eval, exec, os.system, shell=True, pickle, yaml.load and mktemp.
    assert {"S307", "S102", "S605", "S602", "S301", "S506", "S306"} <= found
