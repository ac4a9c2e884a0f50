"""DDS settings: large images, local discovery; a user's choice is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drone_kd import dds

NEW, OLD = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
BUILTIN = "FASTDDS_BUILTIN_TRANSPORTS"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NEW, OLD, BUILTIN, "ROS_DISTRO", "ROS_AUTOMATIC_DISCOVERY_RANGE"):
        # Set first, so that monkeypatch also undoes what the test itself sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_chosen_domain_is_none_of_the_tests_and_a_set_one_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    dds.choose_domain()
    assert os.environ["ROS_DOMAIN_ID"] == "7"
    monkeypatch.delenv("ROS_DOMAIN_ID")
    dds.choose_domain()
    assert 215 <= int(os.environ["ROS_DOMAIN_ID"]) <= 231


@pytest.mark.parametrize(("distro", "name"), [("kilted", NEW), ("jazzy", OLD), ("humble", OLD)])
def test_profile_has_the_name_that_the_distribution_reads(
    monkeypatch: pytest.MonkeyPatch, distro: str, name: str
) -> None:
    monkeypatch.setenv("ROS_DISTRO", distro)
    assert dds.large_images_are_lost()
    dds.carry_large_images()
    assert Path(os.environ[name]).is_file()
    assert not dds.large_images_are_lost()


@pytest.mark.parametrize("name", [NEW, OLD])
def test_profile_chosen_by_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "/mine.xml")
    assert dds.large_image_settings() == {}
    assert not dds.large_images_are_lost()


def test_transport_chosen_by_the_user_is_kept_but_has_no_effect_with_local_discovery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(BUILTIN, "LARGE_DATA?max_msg_size=1MB")
    assert dds.large_image_settings() == {}
    assert not dds.large_images_are_lost()
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    assert dds.large_images_are_lost()


def test_discovery_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_STATIC_PEERS", "192.0.2.1")
    monkeypatch.setenv("ROS_DISCOVERY_SERVER", "192.0.2.1:11811")
    dds.stay_on_this_machine()
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert "ROS_STATIC_PEERS" not in os.environ
    assert "ROS_DISCOVERY_SERVER" not in os.environ
