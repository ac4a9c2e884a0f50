# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checkpoint files of others: read without running code, in bounded memory.

Ultralytics' safe loading allows known classes only. It would still call their constructors, whose
arguments are the file's: a layer of any size, or one that downloads its weights. torch's allows
`bytearray`, `Tensor` and others that take memory without data in the file.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import _weights_only_unpickler as unpickler
from torch import nn
from ultralytics.nn import tasks
from ultralytics.utils import torch_utils

from drone_kd.files import atomic_file
from drone_kd.text import one_line
from drone_kd_training.isolation import replace_in_ultralytics
from drone_kd_training.models.architecture import MAX_MODULES

# Of the object tree without tensors, whose objects take up to 200 times the memory of their bytes.
# The pickle of a large detector has 1 MB.
_MAX_PICKLE_BYTES = 8_000_000
# Of a tensor that has fewer values than its shape says: a view that repeats them.
_MAX_REPEATED_BYTES = 1_000_000
_MAX_SCALAR_BYTES = 64
# An attribute of a layer may say how often it runs; others count weights, and classes.
_MAX_NUMBER, _NO_REPEATS = 1_000_000, ("np", "nc")
# What torch's safe loading allows and a checkpoint needs, beside types of numbers and storages.
_GLOBALS = (
    "_codecs.encode",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor_v2",
)
# The end of a zip: how long its list of files is, and where.
_END, _END_SIZE = struct.Struct("<4s8xII2x"), 22
_END64, _END64_SIZE, _LOCATOR_SIZE = struct.Struct("<4s36xQQ"), 56, 20
# First bytes of a file that torch wrote before its release 1.6.
_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_original = tasks.torch_safe_load
_allowed_by_torch: Callable[[], dict[str, Any]] = unpickler._get_allowed_globals
_one_at_a_time = threading.RLock()


class UnsafeError(UnpicklingError):
    """Checkpoint that only `--trust` loads."""


class OldFormatError(UnsafeError):
    """Checkpoint in the format of torch before 1.6: a plain pickle."""


def read_checkpoint(weight: str | Path, safe_only: bool | None = None) -> tuple[dict, str]:
    """Return the content of a checkpoint and its path, as Ultralytics' `torch_safe_load`.

    ``safe_only``: False trusts the file; default: as `isolation.load_safely` has set.

    Raises:
        UnsafeError: it may run code, or it has a format that is not checked.
        Exception: of many types, for a file that is not a checkpoint.
    """
    if not (tasks.SAFE_LOAD if safe_only is None else safe_only):
        return _original(weight, safe_only)
    if not tasks._SafeLoad.SUPPORTED:  # Ultralytics would run the code
        raise UnsafeError("Unsupported class: safe loading needs torch 2.6")
    if (path := Path(weight)).exists():
        _check_archive(path)
    with _restricted():
        checkpoint, file = _original(weight, True)
    for entry in ("ema", "model"):
        if isinstance(model := checkpoint.get(entry), nn.Module):
            _check_modules(model)
            _check_tensors(model)
    return checkpoint, file


def read_state(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the state of an interrupted run: tensors and plain values, with its "epoch".

    Raises ValueError if the file is anything else; it is never trusted.
    """
    state = read_plain(path, device)
    if not isinstance(state, dict) or not isinstance(state.get("epoch"), int):
        raise ValueError(
            f"{one_line(path)}: expected the state of an interrupted run; start the run anew"
        )
    return state


def read_plain(path: Path, device: str | torch.device = "cpu") -> Any:
    """Return what `torch.save` wrote of tensors and plain values; None: the file is none such."""
    # A damaged or hostile file fails in many ways.
    with contextlib.suppress(Exception), _restricted():
        _check_archive(path)
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums
            if archive.testzip() is None:
                return torch.load(path, map_location=device, weights_only=True)
    return None


def write_plain(path: Path, content: Any) -> None:
    """Write a file for `read_plain` atomically; OSError if it cannot be written.

    `torch.save` itself reports a full disk as a RuntimeError about positions in the file.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def guard_loading() -> None:
    """Make every load of a checkpoint in Ultralytics use `read_checkpoint`; called at import."""

    def stripped(file: str | Path, **_: Any) -> dict:
        """Read the checkpoint that `strip_optimizer` makes small: it would run its code."""
        return read_checkpoint(file)[0]

    if tasks._SafeLoad.SUPPORTED:
        scalars = dict.fromkeys(
            ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar
        )
        tasks._SafeLoad._registry = {**tasks._SafeLoad._build(), **scalars}
    replace_in_ultralytics(tasks.torch_safe_load, read_checkpoint)
    torch_utils.__dict__["torch_load"] = stripped


def _check_archive(path: Path) -> None:
    """Refuse what is no archive of `torch.save`, or would not fit into its own size.

    `torch.save` does not compress, so that the content is never larger than the file.
    """
    if not path.is_file():
        raise ValueError("expected a file, got another kind")
    with path.open("rb") as file:
        if file.read(len(_OLD_FORMAT)) == _OLD_FORMAT:
            raise OldFormatError("Unsupported class: the format is that of torch before 1.6")
        _check_end(file)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        raise ValueError("expected a file of torch.save, got another or half of one") from None
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("expected an uncompressed archive, got one that unpacks to more")
    pickles = [entry.file_size for entry in entries if entry.filename.lower().endswith(".pkl")]
    if max(pickles, default=0) > _MAX_PICKLE_BYTES:
        limit = f"{_MAX_PICKLE_BYTES / 1e6:g} MB"
        raise ValueError(f"expected at most {limit} beside the weights, got more")


def _check_end(file: BinaryIO) -> None:
    """Refuse a zip whose list of files is not at its end: Python and torch would read two lists.

    Python searches from the end, torch goes where the end says.
    """
    end = file.seek(0, os.SEEK_END) - _END_SIZE
    tail = _END64_SIZE + _LOCATOR_SIZE
    file.seek(max(0, end - tail))
    content = file.read()
    mark, size, start = _END.unpack(content[-_END_SIZE:].ljust(_END_SIZE, b"\0"))
    if content[tail - _LOCATOR_SIZE :].startswith(b"PK\6\7"):
        end -= tail
        mark64, size, start = _END64.unpack(content[:_END64_SIZE])
        mark = mark if mark64 == b"PK\6\6" else b""
    if mark != b"PK\5\6" or start + size != end:
        raise ValueError("expected a file of torch.save, got another or half of one")


@contextlib.contextmanager
def _restricted() -> Iterator[None]:
    """Refuse what takes memory or runs code, in this thread.

    A saved model is restored without constructors of layers.
    """
    thread = threading.get_ident()
    allowed = _allowed_globals()
    with _one_at_a_time:
        original = nn.Module.__init__

        def init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            if threading.get_ident() == thread:
                kind = type(module).__name__
                raise UnsafeError(f"Unsupported class: {kind} would be constructed")
            original(module, *args, **kwargs)

        def get_allowed() -> dict[str, Any]:
            return allowed if threading.get_ident() == thread else _allowed_by_torch()

        nn.Module.__init__ = init  # type: ignore[method-assign, assignment]
        unpickler.__dict__["_get_allowed_globals"] = get_allowed
        try:
            yield
        finally:
            unpickler.__dict__["_get_allowed_globals"] = _allowed_by_torch
            nn.Module.__init__ = original  # type: ignore[method-assign]


def _allowed_globals() -> dict[str, Any]:
    """Return what a checkpoint may name, beside the classes that Ultralytics registers."""
    return {
        name: _CHECKED.get(name, value)
        for name, value in _allowed_by_torch().items()
        if name in _GLOBALS or isinstance(value, (torch.dtype, torch.serialization.StorageType))
    }


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes as pickle stores them: text in Latin-1. Others could grow with every call."""
    if encoding != "latin1":
        raise UnsafeError(f"Unsupported class: text in {one_line(encoding, 60)}")
    return text.encode(encoding)


def _scalar(kind: np.dtype, data: bytes = b"") -> Any:
    """Return a number of NumPy; one of a type without data could have any size."""
    if kind.itemsize > _MAX_SCALAR_BYTES or kind.hasobject:
        raise ValueError(f"expected a number, got one of {kind.itemsize} bytes")
    return np.frombuffer(data, kind)[0]


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> torch.Tensor:
    """Return a tensor, as torch's `_rebuild_tensor_v2`, if it has its values."""
    tensor = torch._utils._rebuild_tensor_v2(storage, offset, size, stride, *rest)
    length = tensor.numel() * tensor.element_size()
    if tensor.is_meta or length > max(tensor.untyped_storage().nbytes(), _MAX_REPEATED_BYTES):
        raise ValueError("expected weights, got a tensor that is larger than its data")
    return tensor


_CHECKED = {"_codecs.encode": _encode, "torch._utils._rebuild_tensor_v2": _tensor}


def _check_modules(model: nn.Module) -> None:
    """Refuse a model that would run, or be converted, without an end."""
    for number, (_, module) in enumerate(model.named_modules(remove_duplicate=False)):
        if number >= MAX_MODULES:
            raise ValueError(f"expected at most {MAX_MODULES} modules, got more")
        for name, value in vars(module).items():
            if isinstance(value, int) and abs(value) > _MAX_NUMBER and name not in _NO_REPEATS:
                raise ValueError(f"expected {one_line(name, 60)} up to {_MAX_NUMBER}, got more")


def _check_tensors(model: nn.Module) -> None:
    """Refuse tensors that stand for more values than the file has, alone or together."""
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    total, storages = 0, {}
    for tensor in tensors:
        size, storage = tensor.numel() * tensor.element_size(), tensor.untyped_storage()
        total += size
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.is_meta or size > storage.nbytes():
            raise ValueError("expected weights, got a tensor that is larger than its data")
    # Those that share their data get their own when they are converted.
    if total > 2 * sum(storages.values()) + _MAX_REPEATED_BYTES:
        raise ValueError("expected weights, got tensors that are larger than their data")
