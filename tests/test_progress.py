"""The progress line on a terminal and in a log."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from drone_kd import progress
from drone_kd.progress import Progress, duration, print_line, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def replace_stderr(monkeypatch, stream: io.StringIO) -> None:
    # pytest itself sets sys.stderr between a fixture and its test.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=io.StringIO(), stderr=stream))


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    stream = Terminal()
    replace_stderr(monkeypatch, stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    return stream


@pytest.fixture
def log(monkeypatch) -> io.StringIO:
    stream = io.StringIO()
    replace_stderr(monkeypatch, stream)
    return stream


def shown(stream: io.StringIO) -> list[str]:
    """What the terminal showed, one entry per update."""
    return [part for part in stream.getvalue().split("\r\x1b[K") if part]


def test_terminal_line_is_updated_in_place_and_erased(terminal):
    clock = Clock()
    with Progress("Render", 4, "image", clock=clock) as bar:
        clock.now = 2.0
        bar.update(note="loss 1.5")
    assert shown(terminal) == [
        "Render: 0/4 images",
        "Render: 1/4 images, 2.0 s/image, 6 s left, loss 1.5",
    ]
    assert "\n" not in terminal.getvalue() and terminal.getvalue().endswith("\r\x1b[K")


def test_terminal_line_fits_the_width_and_updates_at_most_ten_times_a_second(terminal):
    clock = Clock()
    with Progress("Render", 100, "image", clock=clock) as bar:
        for number in range(100):
            clock.now = number / 100
            bar.update(note="n" * 100)
    assert len(shown(terminal)) <= 11
    assert max(map(len, shown(terminal))) == 59


def test_log_has_a_line_every_ten_seconds_and_a_last_one(log):
    clock = Clock()
    with Progress("Evaluate val", 60, "image", clock=clock) as bar:
        for second in range(25):
            clock.now = float(second + 1)
            bar.update(2)
    assert log.getvalue().splitlines() == [
        "Evaluate val: 20/60 images, 2.0 images/s, 20 s left",
        "Evaluate val: 40/60 images, 2.0 images/s, 10 s left",
        "Evaluate val: 50 images in 25 s",
    ]


def test_short_work_leaves_nothing_in_a_log(log):
    assert list(track([1, 2, 3], "Count", "number")) == [1, 2, 3]
    assert log.getvalue() == ""


def test_caller_can_print_its_own_summary(log):
    clock = Clock()
    with Progress("Epoch 1/2", 2, "batch", summary=False, clock=clock):
        clock.now = 100.0
    assert log.getvalue() == ""


def test_work_of_an_earlier_run_does_not_count_for_the_rate(log):
    clock = Clock()
    bar = Progress("Score", 10, "segment", done=6, clock=clock)
    clock.now = 4.0
    bar.update(2)
    assert bar.line() == "Score: 8/10 segments, 2.0 s/segment, 4 s left"


def test_unknown_total_shows_count_and_rate():
    clock = Clock()
    bar = Progress("Detect", unit="image", clock=clock)
    clock.now = 2.0
    bar.update(250)
    assert bar.line() == "Detect: 250 images, 125 images/s"


def test_duration_as_unit_has_no_rate():
    clock = Clock()
    bar = Progress("Fly", 60, "s", clock=clock)
    clock.now = 18.0  # of which 3 s passed before the start
    bar.update(15)
    assert bar.line() == "Fly: 15/60 s, 45 s left"


def test_only_the_innermost_of_nested_tasks_is_shown(terminal):
    clock = Clock()
    with Progress("Compare", 2, "model", clock=clock) as outer:
        with Progress("Evaluate", 3, "image", clock=clock):
            clock.now = 5.0
            outer.update()
            assert shown(terminal)[-1] == "Evaluate: 0/3 images"
        clock.now = 6.0
        outer.update()
        assert shown(terminal)[-1].startswith("Compare: 2/2 models")


def test_other_output_erases_the_line_first(terminal):
    with Progress("Mine", 2, "frame"):
        print_line("a warning", terminal)
    assert shown(terminal) == ["Mine: 0/2 frames", "a warning\n"]


def test_error_leaves_no_summary_and_no_open_task(log):
    clock = Clock()
    bar = Progress("Work", 2, clock=clock)

    def fail() -> None:
        with bar:
            clock.now = 100.0
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert log.getvalue() == "" and not progress.Progress._active


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (125, "2:05 min"), (3725, "1:02:05 h")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_no_module_uses_another_progress_bar():
    root = Path(progress.__file__).parents[1]
    sources = [*(root / "drone_kd").rglob("*.py"), *(root / "training").rglob("*.py")]
    assert len(sources) > 50
    assert [str(path) for path in sources if "import tqdm" in path.read_text("utf-8")] == []
