from dataclasses import fields, replace
from typing import Any

from drone_kd.backends.tensorrt.engine_cache import EngineKey

KEY = EngineKey(
    model_sha256="0" * 64,
    tensorrt="10.3.0",
    device="Orin",
    compute_capability="8.7",
    multiprocessors=8,
    precision="fp16",
    optimisation_level=3,
)


def test_every_field_of_the_key_changes_the_digest():
    digests = {KEY.digest()}
    for field in fields(EngineKey):
        value = getattr(KEY, field.name)
        other: Any = value + 1 if isinstance(value, int) else f"{value}x"
        digests.add(replace(KEY, **{field.name: other}).digest())
    assert len(digests) == 1 + len(fields(EngineKey))
