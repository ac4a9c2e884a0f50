from types import SimpleNamespace

import pytest

from drone_kd.media.raw_images import RawError, raw_to_bgr


@pytest.mark.parametrize("encoding", ["x" * 5_000_000, "\x1b]0;evil\x07\n", "\ud800"])
def test_unknown_encoding_is_one_short_line(encoding):
    image = SimpleNamespace(encoding=encoding, width=4, height=4, step=12, data=bytes(48))
    with pytest.raises(RawError, match="expected an image encoded as bgr8") as error:
        raw_to_bgr(image)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("width", "height", "step"), [(2**31, 2**31, 2**33), (4, 2**32 - 1, 12), (2**32 - 1, 1, 12)]
)
def test_size_beyond_the_data_is_refused(width, height, step):
    image = SimpleNamespace(
        encoding="bgr8", width=width, height=height, step=step, data=bytes(48), is_bigendian=0
    )
    with pytest.raises(RawError, match="expected"):
        raw_to_bgr(image)
