"""Simulation of the part of `launch` and `launch_ros` that our launch files use.

Those packages are not available as wheels. The simulation reads the same launch files and starts
the same processes, but it is not the real thing: with a ROS 2 installation the tests use that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import get_package_prefix


class LaunchContext:
    """Values of the launch configurations, and the processes to start."""

    def __init__(self) -> None:
        self.launch_configurations: dict[str, str] = {}
        self.commands: list[tuple[list[str], Mapping[str, str]]] = []
        # Of these commands, those that start again when they end.
        self.respawned: list[list[str]] = []


class LaunchConfiguration:
    """A value that is looked up when the launch file runs."""

    def __init__(self, name: str, *, default: str | None = None) -> None:
        self._name, self._default = name, default

    def perform(self, context: LaunchContext) -> str:
        value = context.launch_configurations.get(self._name, self._default)
        if value is None:
            raise RuntimeError(f"launch configuration '{self._name}' does not exist")
        return value


class ParameterValue:
    """A parameter's value with its type."""

    def __init__(self, value: Any, *, value_type: Any) -> None:
        self._value, self._type = value, value_type

    def evaluate(self, context: LaunchContext) -> Any:
        text = _perform(self._value, context)
        value = text if self._type is str else yaml.safe_load(text)
        if self._type in (bool, float) and not isinstance(value, self._type):
            raise RuntimeError(f"expected a {self._type.__name__}, got {text!r}")
        return value


class LaunchDescription:
    """What a launch file consists of."""

    def __init__(self, entities: Iterable[Any] = ()) -> None:
        self.entities = list(entities)

    def visit(self, context: LaunchContext) -> None:
        for entity in self.entities:
            entity.visit(context)


class DeclareLaunchArgument:
    """A configuration that users may set."""

    def __init__(
        self,
        name: str,
        *,
        default_value: str | None = None,
        description: str = "",
        choices: Sequence[str] | None = None,
    ) -> None:
        self.name, self.description = name, description
        self._default, self._choices = default_value, choices

    def visit(self, context: LaunchContext) -> None:
        if self._default is not None:
            context.launch_configurations.setdefault(self.name, self._default)
        value = context.launch_configurations[self.name]
        if self._choices and value not in self._choices:
            raise RuntimeError(f"argument '{self.name}' is '{value}', not one of {self._choices}")


class OpaqueFunction:
    """Python code that returns more entities."""

    def __init__(self, *, function: Callable[[LaunchContext], Iterable[Any]]) -> None:
        self._function = function

    def visit(self, context: LaunchContext) -> None:
        LaunchDescription(self._function(context)).visit(context)


class GroupAction:
    """Entities whose configurations end with the group."""

    def __init__(self, actions: Iterable[Any]) -> None:
        self._actions = list(actions)

    def visit(self, context: LaunchContext) -> None:
        before = context.launch_configurations
        context.launch_configurations = before.copy()
        LaunchDescription(self._actions).visit(context)
        context.launch_configurations = before


class PythonLaunchDescriptionSource:
    """A launch file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def load(self) -> LaunchDescription:
        module = types.ModuleType("launch_file")
        exec(compile(Path(self.path).read_text(), self.path, "exec"), module.__dict__)
        return module.generate_launch_description()


class IncludeLaunchDescription:
    """Another launch file; as in the real one, its configurations are not scoped."""

    def __init__(
        self,
        source: PythonLaunchDescriptionSource,
        *,
        launch_arguments: Iterable[tuple[str, Any]] = (),
    ) -> None:
        self._source, self._arguments = source, list(launch_arguments)

    def visit(self, context: LaunchContext) -> None:
        for name, value in self._arguments:
            context.launch_configurations[name] = _perform(value, context)
        self._source.load().visit(context)


class Node:
    """A process with a node."""

    def __init__(
        self,
        *,
        package: str,
        executable: str,
        name: Any,
        namespace: Any = "",
        parameters: Sequence[Any] = (),
        remappings: Sequence[tuple[Any, Any]] = (),
        arguments: Sequence[Any] = (),
        additional_env: Mapping[str, str] | None = None,
        output: str = "log",
        respawn: bool = False,
        respawn_delay: float | None = None,
    ) -> None:
        self._respawn = respawn
        self._program = Path(get_package_prefix(package)) / "lib" / package / executable
        self._name, self._namespace = name, namespace
        self._parameters, self._remappings = parameters, remappings
        self._arguments = arguments
        self._environment = additional_env or {}

    def visit(self, context: LaunchContext) -> None:
        command = [str(self._program)]
        command += [_perform(argument, context) for argument in self._arguments]
        name = _perform(self._name, context)
        command += ["--ros-args", "-r", f"__node:={name}"]
        full_name = f"/{name}"
        if namespace := _perform(self._namespace, context).strip("/"):
            command += ["-r", f"__ns:=/{namespace}"]
            full_name = f"/{namespace}{full_name}"
        for parameters in self._parameters:
            if isinstance(parameters, Mapping):
                values = {name: _value(value, context) for name, value in parameters.items()}
                with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
                    yaml.safe_dump({full_name: {"ros__parameters": values}}, file)
                command += ["--params-file", file.name]
            else:
                command += ["--params-file", _perform(parameters, context)]
        for old, new in self._remappings:
            command += ["-r", f"{_perform(old, context)}:={_perform(new, context)}"]
        context.commands.append((command, self._environment))
        if self._respawn:
            context.respawned.append(command)


class LaunchService:
    """Runs launch descriptions until all processes have ended."""

    def __init__(self) -> None:
        self._included: list[Any] = []

    def include_launch_description(self, description: Any) -> None:
        self._included.append(description)

    def run(self) -> int:
        context = LaunchContext()
        try:
            LaunchDescription(self._included).visit(context)
        except Exception as error:  # of any kind, as the real one reports it
            print(f"[ERROR] [launch]: Caught exception in launch: {error}", file=sys.stderr)
            return 1
        environments = [{**os.environ, **own} for _, own in context.commands]
        processes = [
            subprocess.Popen(command, env=environment)
            for (command, _), environment in zip(context.commands, environments, strict=True)
        ]
        # As in the real one, Ctrl-C reaches the processes through the terminal.
        stopped: list[int] = []
        signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
        for process, environment in zip(processes, environments, strict=True):
            process.wait()
            while process.args in context.respawned and not stopped:
                process = subprocess.Popen(process.args, env=environment)
                process.wait()
        return 0


def install() -> None:
    """Make `launch` and `launch_ros` importable in this process."""
    contents = {
        "launch": (LaunchContext, LaunchDescription, LaunchService),
        "launch.actions": (
            DeclareLaunchArgument,
            GroupAction,
            IncludeLaunchDescription,
            OpaqueFunction,
        ),
        "launch.launch_description_sources": (PythonLaunchDescriptionSource,),
        "launch.substitutions": (LaunchConfiguration,),
        "launch_ros": (),
        "launch_ros.actions": (Node,),
        "launch_ros.parameter_descriptions": (ParameterValue,),
    }
    for name, members in contents.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member.__name__, member)
        sys.modules[name] = module


def _perform(value: Any, context: LaunchContext) -> str:
    return value.perform(context) if isinstance(value, LaunchConfiguration) else str(value)


def _value(value: Any, context: LaunchContext) -> Any:
    if isinstance(value, ParameterValue):
        return value.evaluate(context)
    if isinstance(value, LaunchConfiguration):
        return yaml.safe_load(value.perform(context))
    return value
