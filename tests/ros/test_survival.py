"""Nodes outlive the exceptions of their callbacks."""

import pytest
import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue, SetParametersResult
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from drone_kd.ros import survival
from drone_kd.ros.survival import (
    Failures,
    Surviving,
    describe,
    met_destroyed_entity,
    rejection,
    release_entities,
)


class UnprintableError(Exception):
    def __str__(self):
        raise UnicodeError


def raised(error):
    def fail(*_):
        raise error

    return fail


ERRORS = [OSError("disk"), MemoryError(), UnicodeError("x"), RecursionError(), UnprintableError()]


def test_description_is_one_short_printable_line():
    assert describe(ValueError("a\nb\x1b[2J")) == "ValueError: a b\\x1b[2J"
    assert describe(MemoryError()) == "MemoryError"
    assert describe(UnprintableError()) == "UnprintableError"
    assert len(describe(ValueError("x" * 10**6))) < 400


def test_failure_is_recent_for_the_window_and_stays_counted(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(survival, "monotonic", lambda: now)
    failures = Failures()
    assert failures.report() == survival.FailureReport(0, "", False)
    failures.count("first")
    assert failures.report() == survival.FailureReport(1, "first", True)
    now += survival.WINDOW_SECONDS
    assert failures.report() == survival.FailureReport(1, "first", False)
    failures.count("second")
    failures.resolve("first")
    assert failures.report().is_recent
    failures.resolve("second")
    assert failures.report() == survival.FailureReport(2, "second", False)


class Careless(Surviving, Node):
    """Fails in every callback."""

    def __init__(self, error):
        super().__init__("careless")
        self.create_timer(0.001, raised(error))
        self.create_subscription(String, "text", raised(error), 10)
        self.guard = self.create_guard_condition(raised(error))
        self.create_service(Trigger, "trigger", raised(error))
        self.create_service(SetBool, "set", raised(error))
        self.declare_parameter("number", 1)
        self.add_on_set_parameters_callback(raised(error))


class Site:
    """A node and its caller on one executor."""

    def __init__(self, node):
        self.node, self.caller = node, rclpy.create_node("caller")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(node)
        self.executor.add_node(self.caller)

    def spin_until(self, condition):
        while not condition():
            self.executor.spin_once(timeout_sec=0.1)

    def call(self, kind, name, request):
        client = self.caller.create_client(kind, name)
        self.spin_until(client.service_is_ready)
        future = client.call_async(request)
        self.spin_until(future.done)
        return future.result()


@pytest.fixture
def site(ros_domain_id):
    sites = []

    def make(node):
        sites.append(Site(node()))
        return sites[-1]

    rclpy.init()
    yield make
    for made in sites:
        made.executor.shutdown()
        made.node.destroy_node()
        made.caller.destroy_node()
    rclpy.try_shutdown()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_callbacks_fail_and_the_node_goes_on(site, error):
    site = site(lambda: Careless(error))
    node = site.node
    site.spin_until(lambda: node.failures.report().count >= 3)  # the timer's
    node.guard.trigger()
    publisher = site.caller.create_publisher(String, "text", 10)
    site.spin_until(publisher.get_subscription_count)
    publisher.publish(String(data="x"))

    for kind, name in ((Trigger, "trigger"), (SetBool, "set")):
        response = site.call(kind, name, kind.Request())
        assert not response.success
        assert response.message == f"Service {name} failed: {describe(error)}"
    value = ParameterMessage(name="number", value=ParameterValue(type=2, integer_value=2))
    request = SetParameters.Request(parameters=[value, value])
    results = site.call(SetParameters, "careless/set_parameters", request).results
    assert [result.successful for result in results] == [False, False]
    request = SetParametersAtomically.Request(parameters=[value])
    response = site.call(SetParametersAtomically, "careless/set_parameters_atomically", request)
    assert not response.result.successful
    assert type(error).__name__ in response.result.reason
    assert node.get_parameter("number").value == 1


class Careful(Surviving, Node):
    """Has a parameter and a subscription."""

    def __init__(self):
        super().__init__("careful")
        self.declare_parameter("number", 1)
        self.texts = []
        self.create_subscription(String, "text", lambda m: self.texts.append(m.data), 10)


@pytest.mark.parametrize(
    "parameters",
    [
        [ParameterMessage(name="number", value=ParameterValue(type=99))],
        [ParameterMessage(name="x" * 5_000_000)],
        [ParameterMessage(name="\x1b[2J\n")],
        [ParameterMessage(name="", value=ParameterValue(type=4, string_value="x"))],
        [ParameterMessage(name="number")] * 2000,
        # Of the right type, so that only its size can be the reason.
        [ParameterMessage(name="number", value=ParameterValue(type=2, integer_value=2))] * 51,
        [
            ParameterMessage(
                name="number",
                value=ParameterValue(type=2, integer_value=2, double_array_value=[0.5] * 200_001),
            )
        ],
    ],
)
def test_hostile_request_gets_a_short_refusal(site, parameters):
    site = site(Careful)
    request = SetParameters.Request(parameters=parameters)
    results = site.call(SetParameters, "careful/set_parameters", request).results
    assert results and not any(result.successful for result in results)
    for result in results:
        assert result.reason.isprintable() and len(result.reason) < 400
    assert site.node.get_parameter("number").value == 1
    names = GetParameters.Request(names=["number"] * 2000)
    assert not site.call(GetParameters, "careful/get_parameters", names).values
    names = GetParameters.Request(names=["number"])
    assert site.call(GetParameters, "careful/get_parameters", names).values


def test_reason_that_quotes_the_request_is_short(site):
    site = site(Careful)
    long = SetParametersResult(successful=False, reason="x\n" * 10_000)
    site.node.add_on_set_parameters_callback(lambda _: long)
    value = ParameterMessage(name="number", value=ParameterValue(type=2, integer_value=2))
    request = SetParameters.Request(parameters=[value])
    (result,) = site.call(SetParameters, "careful/set_parameters", request).results
    name = "careful/set_parameters_atomically"
    atomic = SetParametersAtomically.Request(parameters=[value])
    for refused in (result, site.call(SetParametersAtomically, name, atomic).result):
        assert not refused.successful
        assert refused.reason.isprintable() and 100 < len(refused.reason) < 400


def test_response_of_a_life_cycle_service_says_no():
    assert not rejection(None, ChangeState.Response(success=True), "why").success


def test_subscription_receives_after_an_exception_inside_of_rclpy(site, monkeypatch):
    """It would stay marked as busy, and all others of its callback group with it."""
    site = site(Careful)
    publisher = site.caller.create_publisher(String, "text", 10)
    site.spin_until(publisher.get_subscription_count)
    with monkeypatch.context() as patch:
        patch.setattr(site.executor, "_take_subscription", raised(RuntimeError("take")))
        publisher.publish(String(data="lost"))
        with pytest.raises(RuntimeError, match="take"):
            site.spin_until(lambda: False)
    release_entities(site.node)
    publisher.publish(String(data="received"))
    site.spin_until(lambda: "received" in site.node.texts)


def spin_error(node):
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        for _ in range(100):
            executor.spin_once(timeout_sec=0.1)
    except Exception as error:
        return error
    finally:
        executor.remove_node(node)
        executor.shutdown()
    pytest.fail("expected an exception")


def test_entity_that_another_thread_destroyed_is_no_failure(ros_domain_id):
    rclpy.init()
    node = Node("destroyed_entity")
    subscription = node.create_subscription(String, "words", lambda _: None, 10)
    subscription.event_handlers[0].destroy()
    assert met_destroyed_entity(spin_error(node))
    node.destroy_subscription(subscription)

    node.create_timer(0.0, raised(rclpy_implementation.InvalidHandle("of a callback")))
    assert not met_destroyed_entity(spin_error(node))
    node.destroy_node()
    rclpy.shutdown()
