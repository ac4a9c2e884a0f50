"""The detector's parameters as one checked, immutable value; no rclpy here."""

from __future__ import annotations

import contextlib
import math
import re
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from drone_kd.backends import RUNTIMES, Backend
from drone_kd.core.thresholds import parse_thresholds
from drone_kd.core.tiling import OFF, parse_tiling
from drone_kd.detector import Detector
from drone_kd.paths import confined, default_model_path, expanded
from drone_kd.text import is_plain, one_line

_CHOICES = {
    "runtime": RUNTIMES,
    "image_transport": ("raw", "compressed", "ffmpeg"),
    "reliability": ("auto", "reliable", "best_effort"),
    "record_format": ("jpeg", "raw"),
}
# Of a list of names, and of a name or another text.
_MAX_NAMES = 10_000
_MAX_CHARACTERS = 1000
_MAX_LIST_CHARACTERS = 200_000
# Part of topic names, which DDS limits to 255 characters in all.
_CAMERA_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]{0,99}")


class SettingsError(ValueError):
    """A parameter's value cannot be used; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """The detector's parameters at one moment, checked; see config/detector.yaml.

    Raises:
        SettingsError: a value cannot be used.
    """

    model_directories: tuple[str, ...]
    swap_timeout_s: float
    runtime: str
    allow_fallback: bool
    may_build: bool
    confidence: float
    class_confidence: Mapping[str, float]
    classes: tuple[str, ...]
    iou: float
    max_detections: int
    tiling: str
    tile_overlap: float
    budget_ms: float
    cameras: tuple[str, ...]
    camera_settings: tuple[str, ...]
    camera: str
    image_transport: str
    reliability: str
    max_megapixels: float
    max_age: float
    max_rate: float
    record_directory: str
    record_budget_mb: float
    record_per_minute: float
    record_random: float
    record_format: str
    record_private: bool
    silence_s: float
    stall_s: float
    rate_warn_hz: float
    latency_warn_ms: float
    latency_error_ms: float
    failed_error_share: float
    temperature_warn_c: float
    temperature_error_c: float

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Settings:
        """Return the settings of ROS parameter values by name; other names are ignored."""
        values = {field.name: parameters[field.name] for field in fields(cls)}
        for name, value in values.items():
            _check_value(name, value)
        # An empty list has no type in ROS, so [""] stands for it.
        for name in ("classes", "model_directories", "camera_settings"):
            values[name] = tuple(dict.fromkeys(item for item in values[name] if item))
        try:
            values["class_confidence"] = parse_thresholds(values["class_confidence"])
        except ValueError as error:
            raise SettingsError(f"class_confidence: {error}") from None
        values["tiling"] = _tiling(values["tiling"])
        # A single camera may have no name.
        values["cameras"] = tuple(values["cameras"]) or ("",)
        return cls(**values)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Settings:
        """Return the settings that `to_json` has written."""
        lists = {name: tuple(value) for name, value in record.items() if isinstance(value, list)}
        return cls(**{**record, **lists})

    def to_json(self) -> dict[str, Any]:
        """Return values for JSON, which `from_json` reads."""
        return asdict(self)

    def __post_init__(self) -> None:
        # What ROS cannot check by type and range.
        try:
            parse_tiling(self.tiling)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise SettingsError(
                    f'{name}: expected {" or ".join(known)}, got "{one_line(value)}"'
                )
        _check_cameras(self.cameras)
        for text in self.camera_settings:
            _parse_camera_setting(text, self.cameras)
        if self.camera and self.cameras != ("",):
            raise SettingsError(
                "camera: expected no names in cameras beside it, got "
                f"{one_line(list(self.cameras))}; start a node per camera"
            )
        try:
            # "~/...", as in the default: a node without a home flies, and `Recorder` refuses.
            if not self.record_directory.startswith("~/"):
                expanded(self.record_directory)
        except ValueError as error:
            raise SettingsError(f"record_directory: {error}") from None

    def of(self, camera: str) -> Settings:
        """Return the settings of a camera: with its own values of `camera_settings`."""
        parsed = [_parse_camera_setting(text, self.cameras) for text in self.camera_settings]
        own = {name: value for other, name, value in parsed if other == camera}
        return replace(self, **own) if own else self

    def check(self, backend: Backend) -> None:
        """Raise ValueError if those of a camera name a class that the model does not know."""
        for camera in self.cameras:
            self.of(camera).detector(backend)

    def detector(self, backend: Backend) -> Detector:
        """Return a detector that runs a backend with these settings.

        Raises:
            ValueError: the settings name a class that the model does not know.
        """
        return Detector(
            backend,
            confidence=self.confidence,
            iou=self.iou,
            max_detections=self.max_detections,
            class_confidence=self.class_confidence,
            only=self.classes,
            tiling=self.tiling,
            tile_overlap=self.tile_overlap,
        )


class ModelFolders:
    """The folders from which a model may be loaded: anyone on the network can set `model`.

    Args:
        started_with: value of the parameter `model` at startup.
        configured: value of `model_directories`; empty: the folder of that model, and that of
            the package's own model.

    Raises:
        SettingsError: a folder is no path.
    """

    def __init__(self, started_with: str, configured: tuple[str, ...]) -> None:
        self._started_with = started_with
        try:
            self._folders = [expanded(folder).absolute() for folder in configured]
        except ValueError as error:
            raise SettingsError(f"model_directories: {error}") from None
        if configured:
            return
        # The name, not what a link leads to: the link may be changed between two flights.
        if started_with:
            # Of a user without a home folder: loading the model will say so.
            with contextlib.suppress(ValueError):
                self._folders.append(expanded(started_with).absolute().parent)
        with contextlib.suppress(ValueError):  # this installation has none
            self._folders.append(default_model_path().parent)

    def missing(self) -> list[Path]:
        """Return those of the folders that do not exist."""
        return [folder for folder in self._folders if not folder.is_dir()]

    def find(self, parameter: str) -> Path | None:
        """Return the path of a model for a value of `model`; None: empty, the default model.

        The value given at startup is always allowed.

        Raises:
            SettingsError: no such file is in the folders; the message does not tell whether there
                is one elsewhere.
        """
        if not parameter:
            return None
        try:
            # The first model wherever it is, or a link leads to by now.
            is_first = parameter == self._started_with
            found = expanded(parameter) if is_first else confined(parameter, self._folders)
            is_model = found.is_file()
        except (OSError, ValueError):
            is_model = False
        if not is_model:
            folders = " or ".join(one_line(folder) for folder in self._folders) or "no folder"
            hint = "" if parameter.startswith(("/", "~")) else ": give an absolute path"
            raise SettingsError(
                f"model: expected a file in {folders} (set by model_directories at startup), "
                f'got "{one_line(parameter, 50)}"{hint}'
            )
        return found


def _check_cameras(names: tuple[str, ...]) -> None:
    """Raise SettingsError unless names can be part of topics; a single camera may have none."""
    is_distinct = len(set(names)) == len(names)
    if names != ("",) and not (is_distinct and all(map(_CAMERA_NAME.fullmatch, names))):
        raise SettingsError(
            "cameras: expected distinct names of up to 100 letters A to Z, digits and underscores "
            f"that do not start with a digit, got {one_line(list(names))}"
        )


def _parse_camera_setting(text: str, cameras: tuple[str, ...]) -> tuple[str, str, Any]:
    """Return camera, name and value of "front.confidence=0.4"; SettingsError: it is none."""
    left, _, value = text.partition("=")
    camera, _, name = left.rpartition(".")
    parsed: Any = None
    with contextlib.suppress(ValueError):
        if name == "confidence" and 0 <= float(value) <= 1:
            parsed = float(value)
        elif name == "classes" and value:
            parsed = tuple(value.split(","))
        elif name == "tiling":
            parse_tiling(value)
            parsed = value
    if parsed is None or camera not in cameras:
        names = " or ".join(filter(None, cameras)) or 'the names of "cameras"'
        raise SettingsError(
            f"camera_settings: expected CAMERA.confidence=0.4, CAMERA.classes=car,person or "
            f'CAMERA.tiling=2x3 with {names}, got "{one_line(text, 100)}"'
        )
    return camera, name, parsed


def _tiling(value: object) -> str:
    """Return the value of `tiling`, whose type ROS does not check, as text."""
    # YAML, and therefore the command line, reads a bare off as false.
    if value is False:
        return OFF
    if not isinstance(value, str):
        got = f"a value of type {type(value).__name__}"
        raise SettingsError(f"tiling: expected off, auto or ROWSxCOLUMNS as text, got {got}")
    return value


def _check_value(name: str, value: object) -> None:
    """Raise SettingsError for a number that is none, or for text that is too long or not plain."""
    # Arrays of numbers are instances of `array`.
    values = value if isinstance(value, list | tuple | array) else [value]
    texts = [item for item in values if isinstance(item, str)]
    if len(values) > _MAX_NAMES or sum(map(len, texts)) > _MAX_LIST_CHARACTERS:
        raise SettingsError(
            f"{name}: expected up to {_MAX_NAMES} values and {_MAX_LIST_CHARACTERS} characters, "
            f"got {len(values)} and {sum(map(len, texts))}"
        )
    for item in values:
        if isinstance(item, float) and not math.isfinite(item):
            raise SettingsError(f"{name}: expected a finite number, got {item}")
    for text in texts:
        if len(text) > _MAX_CHARACTERS or not is_plain(text):
            raise SettingsError(
                f"{name}: expected up to {_MAX_CHARACTERS} printable characters, got "
                f'{len(text)}: "{one_line(text, 50)}"'
            )
