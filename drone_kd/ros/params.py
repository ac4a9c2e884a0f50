"""The detector's parameters as one checked, immutable value; no rclpy here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from drone_kd.backends import RUNTIMES, Backend
from drone_kd.core.thresholds import parse_thresholds
from drone_kd.core.tiling import OFF, parse_tiling
from drone_kd.detector import Detector
from drone_kd.paths import expanded

_CHOICES = {
    "runtime": RUNTIMES,
    "image_transport": ("raw", "compressed"),
    "reliability": ("auto", "reliable", "best_effort"),
    "record_format": ("jpeg", "raw"),
}


class SettingsError(ValueError):
    """A parameter's value cannot be used; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """The detector's parameters at one moment, checked; see config/detector.yaml.

    Raises:
        SettingsError: a value cannot be used.
    """

    runtime: str
    allow_fallback: bool
    confidence: float
    class_confidence: Mapping[str, float]
    classes: tuple[str, ...]
    iou: float
    max_detections: int
    tiling: str
    tile_overlap: float
    budget_ms: float
    cameras: tuple[str, ...]
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
        # An empty list has no type in ROS, so [""] stands for it.
        values["classes"] = tuple(name for name in values["classes"] if name)
        try:
            values["class_confidence"] = parse_thresholds(values["class_confidence"])
        except ValueError as error:
            raise SettingsError(f"class_confidence: {error}") from None
        # YAML, and therefore the command line, reads a bare off as false.
        values["tiling"] = OFF if values["tiling"] is False else str(values["tiling"])
        # A single camera may have no name.
        values["cameras"] = tuple(values["cameras"]) or ("",)
        return cls(**values)

    def __post_init__(self) -> None:
        # What ROS cannot check by type and range.
        try:
            parse_tiling(self.tiling)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise SettingsError(f"{name}: expected {' or '.join(known)}, got {value!r}")
        if len(set(self.cameras)) != len(self.cameras) or not all(
            name.isidentifier() for name in self.cameras if len(self.cameras) > 1 or name
        ):
            raise SettingsError(
                "cameras: expected distinct names of letters, digits and underscores, got "
                f"{list(self.cameras)}"
            )
        try:
            expanded(self.record_directory)
        except ValueError as error:
            raise SettingsError(f"record_directory: {error}") from None

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
