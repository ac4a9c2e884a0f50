"""Damaged bags, MCAP and SQLite: messages up to the damage, or SourceError."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install 'drone_kd[simulation]'")

from hypothesis import given
from hypothesis import strategies as st

from drone_kd.media.bags import (
    COMPRESSED,
    IMAGE,
    Message,
    inspect_bag,
    message_to_bgr,
    read_messages,
)
from drone_kd.media.image_files import SourceError
from fuzzing import check_line, damaged, only
from process_memory import memory
from recorded import STORE, image, jpeg, scene, storage_file, write_bag

pytestmark = pytest.mark.slow

SECOND = 10**9
MAX_MESSAGES, MEGABYTES = 100, 450


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Bytes of a small bag by file suffix."""
    found = {}
    for storage in ("MCAP", "SQLITE3"):
        small = scene(0, 0, 32, 16)
        messages = [("/raw", k * SECOND, image(small, k)) for k in range(3)]
        messages += [("/jpeg", k * SECOND + 1, jpeg(small, k)) for k in range(3)]
        file = storage_file(write_bag(tmp_path_factory.mktemp("bag") / storage, messages, storage))
        found[file.suffix] = file.read_bytes()
    return found


@given(suffix=st.sampled_from([".mcap", ".db3"]), data=st.data())
def test_bag_is_read_up_to_the_damage(
    suffix: str, data: st.DataObject, bags: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"bag{suffix}"
    path.write_bytes(data.draw(damaged([bags[suffix]])))
    with memory(MEGABYTES), only(SourceError):
        for file in inspect_bag(path, check_line):
            topics = {topic.name for topic in file.topics}
            messages = read_messages(file, topics, check_line)
            for message in itertools.islice(messages, MAX_MESSAGES):
                assert isinstance(message.data, (bytes, memoryview))
                if message.msgtype in (IMAGE, COMPRESSED):
                    with only(SourceError):
                        assert message_to_bgr(message)[0].dtype == np.uint8


MESSAGES = {
    IMAGE: bytes(STORE.serialize_cdr(image(scene(0, 0, 32, 16), 5), IMAGE)),
    COMPRESSED: bytes(STORE.serialize_cdr(jpeg(scene(0, 0, 32, 16), 5), COMPRESSED)),
}


@given(
    st.sampled_from(sorted(MESSAGES)).flatmap(
        lambda kind: st.tuples(st.just(kind), damaged([MESSAGES[kind]]))
    )
)
def test_stored_message_is_an_image_or_refused(entry: tuple[str, bytes]) -> None:
    kind, data = entry
    with only(SourceError):
        assert message_to_bgr(Message("/image", kind, 1, data))[0].dtype == np.uint8
