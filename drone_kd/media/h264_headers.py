"""H.264 headers: which frame a packet holds, and whether one that it needs is missing.

ITU-T H.264, sections 7.3.2 (parameter sets), 7.3.3 (slice header) and 7.4.3 (frame_num). FFmpeg
fills a gap with copies of an older frame and reports nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

_SLICE, _KEY_SLICE, _SEQUENCE, _PICTURE = 1, 5, 7, 8
# Bytes of a unit that hold what is read here.
_HEADER_BYTES = 512
# Profiles whose sequence parameter set has the format of the pixels.
_HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
# Parameter sets of a stream; a packet may name others.
_MAX_SETS = 256


class FrameNumbers:
    """Follows the frame numbers of a stream."""

    def __init__(self) -> None:
        # By the number of the set: bits of frame_num, and whether slices name a colour plane.
        self._sequences: dict[int, tuple[int, bool]] = {}
        self._pictures: dict[int, int] = {}  # number of its sequence set by that of the set
        self._reference: int | None = None  # frame_num of the last one that others may need

    def is_gap(self, units: Iterable[bytes]) -> bool:
        """Return whether a frame between the last packet and this one is missing.

        ValueError: a header is damaged, or names a parameter set that did not come.
        """
        for unit in units:
            kind = unit[0] & 31
            if kind == _SEQUENCE:
                self._read_sequence(_bits(unit))
            elif kind == _PICTURE:
                bits = _bits(unit)
                self._pictures[bits.set_number()] = bits.set_number()
            elif kind in (_SLICE, _KEY_SLICE):
                return self._check_slice(unit)  # the others belong to the same frame
        return False

    def _check_slice(self, unit: bytes) -> bool:
        bits = _bits(unit)
        bits.number()  # of the first macroblock
        bits.number()  # type
        sequence = self._pictures.get(bits.set_number(), -1)
        if sequence not in self._sequences:
            raise ValueError("a parameter set is missing")
        length, has_planes = self._sequences[sequence]
        bits.take(2 * has_planes)
        number, before = bits.take(length), self._reference
        if unit[0] >> 5 & 3:
            self._reference = number
        if unit[0] & 31 == _KEY_SLICE:
            return False
        # A second field has the same number, but is in the packet of the first one.
        return before is None or number != (before + 1) % (1 << length)

    def _read_sequence(self, bits: _Bits) -> None:
        profile = bits.take(8)
        bits.take(16)  # constraints and level
        number, has_planes = bits.set_number(), False
        if profile in _HIGH_PROFILES:
            chroma = bits.number()
            has_planes = chroma == 3 and bool(bits.take(1))
            bits.number()  # bits of luma
            bits.number()  # and of chroma
            bits.take(1)
            if bits.take(1):
                for index in range(8 if chroma != 3 else 12):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
        self._sequences[number] = bits.number() + 4, has_planes


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    if not bits.take(1):
        return
    scale = 8
    for _ in range(size):
        code = bits.number()
        # Signed: 1, -1, 2, -2 for 1, 2, 3, 4.
        scale = (scale + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
        if not scale:
            return


def _bits(unit: bytes) -> _Bits:
    """Return the bits after the first byte, without those that keep start codes unique."""
    return _Bits(unit[1:_HEADER_BYTES].replace(b"\0\0\3", b"\0\0"))


class _Bits:
    """Reads numbers, most significant bit first; ValueError: there are no more."""

    def __init__(self, data: bytes) -> None:
        self._bits = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else ""
        self._at = 0

    def take(self, length: int) -> int:
        """Return an unsigned number of some bits; 0 bits: 0."""
        if self._at + length > len(self._bits):
            raise ValueError("a header is cut off")
        digits = self._bits[self._at : self._at + length]
        self._at += length
        return int(digits, 2) if digits else 0

    def number(self) -> int:
        """Return an unsigned number in Exp-Golomb code (section 9.1)."""
        zeros = self._bits.index("1", self._at) - self._at
        if zeros > 32:
            raise ValueError("a header is damaged")
        self._at += zeros
        return self.take(zeros + 1) - 1

    def set_number(self) -> int:
        """Return the number of a parameter set."""
        number = self.number()
        if number >= _MAX_SETS:
            raise ValueError("a header is damaged")
        return number
