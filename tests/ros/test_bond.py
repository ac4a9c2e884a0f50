"""A lifecycle manager that does what nav2's does: bring up, take down, see the node die."""

import importlib.util
import os
import signal
import sys
import sysconfig
from pathlib import Path

import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

from drone_kd.ros.bond import PERIOD_SECONDS

ROOT = Path(__file__).resolve().parents[2]
# As `ros2 interface show bond/msg/Status`.
STATUS = """std_msgs/Header header
string id
string instance_id
bool active
float32 heartbeat_timeout
float32 heartbeat_period
"""


def build_bond(folder):
    """Build the messages of the package `bond`; return its site-packages and its libraries."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "interfaces" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    source = folder / "interfaces" / "bond" / "msg" / "Status.msg"
    source.parent.mkdir(parents=True)
    source.write_text(STATUS)
    build.INTERFACES = folder / "interfaces"
    (folder / "work").mkdir()
    package = build.build("bond", folder / "work")
    # The extension finds the other libraries by a path relative to site-packages.
    site = folder / os.path.relpath(sysconfig.get_path("platlib"), sys.prefix)
    site.mkdir(parents=True)
    installed = package.rename(site / "bond")
    libraries = folder / "lib"
    for library in (Path(sys.prefix) / "lib").glob("*.so*"):
        (libraries / library.name).symlink_to(library)
    for typesupport in build.TYPESUPPORTS:
        (libraries / f"libbond__{typesupport}.so").symlink_to(next(installed.glob("*.so")))
    return site, libraries


@pytest.fixture(scope="module")
def bond_messages(tmp_path_factory):
    """Make `bond.msg` importable in child processes; this one's loader has been started."""
    if importlib.util.find_spec("bond"):
        yield
        return
    pytest.importorskip("rosidl_generator_py", reason="needs the package bond or the ROS wheels")
    site, libraries = build_bond(tmp_path_factory.mktemp("bond"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("PYTHONPATH", site), ("LD_LIBRARY_PATH", libraries)):
            others = os.environ.get(name, "")
            patch.setenv(name, os.pathsep.join(filter(None, (str(value), others))))
        yield


class Manager:
    """Changes the node's state as nav2's lifecycle manager does."""

    def __init__(self, site):
        self._site = site

    def change(self, transition, state):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert self._site.call(ChangeState, "/detector/change_state", request).success
        assert self.state() == state

    def state(self):
        return self._site.call(
            GetState, "/detector/get_state", GetState.Request()
        ).current_state.id

    def bring_up(self):
        assert self.state() == State.PRIMARY_STATE_UNCONFIGURED
        self.change(Transition.TRANSITION_CONFIGURE, State.PRIMARY_STATE_INACTIVE)
        self.change(Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_ACTIVE)

    def take_down(self):
        self.change(Transition.TRANSITION_DEACTIVATE, State.PRIMARY_STATE_INACTIVE)
        self.change(Transition.TRANSITION_CLEANUP, State.PRIMARY_STATE_UNCONFIGURED)
        self.change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN, State.PRIMARY_STATE_FINALIZED)


@pytest.mark.slow
def test_manager_with_a_bond_sees_the_node_live_stop_and_die(
    ground, model, start, start_detector, bond_messages
):
    site = ground()
    listener = start(
        "bond_listener", PYTHONPATH=os.pathsep.join([os.environ.get("PYTHONPATH", ""), *sys.path])
    )
    listener.wait_for_line("listening")
    process = start_detector(model=model)
    manager = Manager(site)

    def next_beat(active):
        line = listener.wait_for_line(f" {active}")
        _, name, instance, _ = line.split()
        assert name == "detector"
        return instance

    manager.bring_up()
    first = next_beat(True)
    assert next_beat(True) == first
    manager.change(Transition.TRANSITION_DEACTIVATE, State.PRIMARY_STATE_INACTIVE)
    assert next_beat(False) == first
    manager.change(Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_ACTIVE)
    assert next_beat(True) != first, "a bond is formed once"
    process.kill()
    while listener.has_line("bond"):  # what came before
        pass
    assert not listener.has_line("bond", seconds=4 * PERIOD_SECONDS)


@pytest.mark.slow
def test_manager_without_a_bond_brings_the_node_up_and_down(ground, model, start_detector):
    """As with bond_timeout: 0.0."""
    site = ground()
    process = start_detector(model=model)
    manager = Manager(site)
    manager.bring_up()
    manager.take_down()
    assert process.stop(signal.SIGINT)[0] == 0
