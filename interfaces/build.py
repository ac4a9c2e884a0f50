"""Build the message packages of this folder into the environment that runs this script.

    python interfaces/build.py

The ROS 2 wheels have no vision_msgs and no ffmpeg_image_transport_msgs. This script runs their
rosidl generators on interfaces/PACKAGE/msg/*.msg and compiles the result, with the system's C and
C++ compilers, into site-packages/PACKAGE. With a ROS 2 installation sourced it is not needed:
install the distribution's own packages (ros-<distro>-vision-msgs).

Only the parts that rclpy uses are built, into one extension module. It finds the libraries of the
wheels by a relative path, so no environment variable is needed. The compilers are called directly,
because the wheels' CMake files contain include folders of the machine that built the wheels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PACKAGES = "vision_msgs", "ffmpeg_image_transport_msgs"
DEPENDENCIES = ("builtin_interfaces", "geometry_msgs", "std_msgs")
# Fast DDS serialises with the first; Jazzy's also describes types with the second.
TYPESUPPORTS = ("rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c")
INTERFACES = Path(__file__).resolve().parent
PREFIX = Path(sys.prefix)


def generate(package: str, out: Path) -> None:
    """Generate the sources of a package's .msg files into `out`/<generator>/<package>/msg."""
    import rosidl_generator_c
    import rosidl_generator_py
    import rosidl_generator_type_description
    import rosidl_typesupport_c
    import rosidl_typesupport_fastrtps_c
    import rosidl_typesupport_introspection_c
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_cli.command.helpers import generate_visibility_control_file

    package_dir = INTERFACES / package
    names = sorted(path.stem for path in (package_dir / "msg").glob("*.msg"))
    idl_dir = out / "idl"
    (idl_dir / "msg").mkdir(parents=True)
    for name in names:
        convert_msg_to_idl(package_dir, package, Path("msg", f"{name}.msg"), idl_dir / "msg")
    hashes = out / "rosidl_generator_type_description" / package / "msg"

    def arguments(generator: str) -> str:
        """Write the arguments file of `generator` and its header of export macros."""
        folder = out / generator / package
        templates = PREFIX / "share" / generator / "resource"
        header = f"{generator}__visibility_control.h"
        if (templates / f"{header}.in").exists():
            generate_visibility_control_file(
                package_name=package,
                template_path=templates / f"{header}.in",
                output_path=folder / "msg" / header,
            )
        values = {
            "package_name": package,
            "output_dir": str(folder),
            "template_dir": str(templates),
            "target_dependencies": [],
            "idl_tuples": [f"{idl_dir}:msg/{name}.idl" for name in names],
            "include_paths": [f"{name}:{PREFIX / 'share' / name}" for name in DEPENDENCIES],
            "ros_interface_files": [str(package_dir / "msg" / f"{name}.msg") for name in names],
        }
        if generator == "rosidl_generator_c":
            values["type_description_tuples"] = [
                f"msg/{name}.idl:{hashes / name}.json" for name in names
            ]
        path = out / f"{generator}.json"
        path.write_text(json.dumps(values))
        return str(path)

    # First the type hashes: the C code contains them.
    rosidl_generator_type_description.generate_type_hash(
        arguments("rosidl_generator_type_description")
    )
    rosidl_generator_c.generate_c(arguments("rosidl_generator_c"))
    rosidl_typesupport_fastrtps_c.generate_typesupport_fastrtps_c(
        arguments("rosidl_typesupport_fastrtps_c")
    )
    rosidl_typesupport_introspection_c.generate_c(arguments("rosidl_typesupport_introspection_c"))
    rosidl_typesupport_c.generate_c(arguments("rosidl_typesupport_c"), TYPESUPPORTS)
    rosidl_generator_py.generate_py(arguments("rosidl_generator_py"), ["rosidl_typesupport_c"])


def run(command: list[str]) -> None:
    """Run a compiler; RuntimeError, with its messages, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{done.stderr.strip()}\nfailed: {' '.join(command)}")


def compile_extension(package: str, out: Path, target: Path) -> None:
    """Compile all generated sources below `out` and link them into the module `target`."""
    import numpy

    includes = [sysconfig.get_path("include"), numpy.get_include(), *out.iterdir()]
    # One folder per ROS package, and the parent itself for Fast CDR.
    includes += [*(PREFIX / "include").iterdir(), PREFIX / "include"]
    flags = ["-O1", "-fPIC", "-w", *(f"-I{path}" for path in includes)]
    cc = os.environ.get("CC", "cc").split()
    cxx = os.environ.get("CXX", "c++").split()

    objects = []
    commands = []
    # The C++ files take longest, so start them first.
    for source in [*out.rglob("*.cpp"), *out.rglob("*.c")]:
        compiler = [*cxx, "-std=c++17"] if source.suffix == ".cpp" else cc
        objects.append(f"{source}.o")
        commands.append([*compiler, *flags, "-c", str(source), "-o", objects[-1]])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))

    parts = ("rosidl_generator_c", "rosidl_generator_py", *TYPESUPPORTS)
    libraries = [f"{name}__{part}" for name in DEPENDENCIES for part in parts]
    libraries += ["rosidl_runtime_c", "rosidl_typesupport_c", *TYPESUPPORTS]
    libraries += ["rosidl_typesupport_fastrtps_cpp", "fastcdr", "rcutils", "rmw"]
    lib = os.path.relpath(PREFIX / "lib", Path(sysconfig.get_path("platlib"), package))
    link = [f"-L{PREFIX / 'lib'}", *(f"-l{name}" for name in libraries)]
    link += [f"-Wl,-rpath,$ORIGIN/{lib}", "-Wl,--as-needed", "-s"]
    run([*cxx, "-shared", *objects, *link, "-o", str(target)])


def build(name: str, work: Path) -> Path:
    """Build a package below the empty folder `work` and return its folder."""
    out = work / "generated"
    with contextlib.redirect_stdout(io.StringIO()):
        generate(name, out)
    package = work / name
    (package / "msg").mkdir(parents=True)
    (package / "__init__.py").touch()
    for source in (out / "rosidl_generator_py" / name / "msg").glob("*.py"):
        shutil.copy(source, package / "msg")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    compile_extension(name, out, package / f"{name}_s__rosidl_typesupport_c{suffix}")
    return package


def install(package: Path, work: Path) -> None:
    """Move the built package into site-packages; replace an older one."""
    target = Path(sysconfig.get_path("platlib"), package.name)
    if target.exists():
        target.rename(work / "previous")
    package.rename(target)
    # rosidl opens each typesupport as a separate library: link all of them to the extension.
    extension = next(target.glob("*.so"))
    for typesupport in TYPESUPPORTS:
        library = PREFIX / "lib" / f"lib{package.name}__{typesupport}.so"
        library.unlink(missing_ok=True)
        library.symlink_to(os.path.relpath(extension, library.parent))


def build_and_install(name: str) -> None:
    """Build a package in a temporary folder, then install it; RuntimeError, OSError: it failed."""
    # Inside the environment, so that the moves stay on one file system.
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=PREFIX) as temporary:
        work = Path(temporary)
        install(build(name, work), work)


def main() -> None:
    """Build and install all packages."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    if sys.prefix == sys.base_prefix:
        sys.exit(
            f"expected the Python of a virtual environment, got {sys.executable}; run `make setup`"
        )
    for name in PACKAGES:
        try:
            build_and_install(name)
        except ImportError as error:
            sys.exit(
                f"expected the ROS 2 wheels of requirements/ros.txt in {PREFIX}, "
                f"got '{error}'; run `make setup`"
            )
        except (OSError, RuntimeError) as error:
            sys.exit(f"cannot compile {name}: {error}")


if __name__ == "__main__":
    main()
