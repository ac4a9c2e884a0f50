"""malloc settings of the node; see drone_kd/ros/memory.py."""

import subprocess
import sys

import pytest

# Prints glibc's heaps after several threads have allocated at once.
COUNT_HEAPS = """
import ctypes, sys, threading

exec(sys.argv[1])
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
meet = threading.Barrier(6)

def take():
    meet.wait()
    for _ in range(1000):
        libc.malloc(ctypes.c_size_t(2000))
    meet.wait()

threads = [threading.Thread(target=take) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fopen.restype = ctypes.c_void_p
out = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(out))
libc.fclose(ctypes.c_void_p(out))
"""


WRONG = '["--ros-args", "-p", "confidence:=9.0"]'


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="malloc_info is glibc's")
def test_threads_of_a_detector_process_share_one_heap_and_importers_keep_theirs(ros_domain_id):
    def heaps(code: str) -> int:
        command = [sys.executable, "-c", COUNT_HEAPS, code]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return found.stdout.count("<heap nr=")

    assert heaps("import drone_kd.ros.detector, drone_kd.ros.detector_node") > 3
    assert heaps(f"import drone_kd.ros.detector as d; assert d.main({WRONG}) == 2") == 1
