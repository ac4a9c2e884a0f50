import subprocess
import sys

from drone_kd_training.distillation.terms import BOX_TERMS, TERM_HELP, TERMS


def test_every_term_has_one_line_of_help_with_its_paper():
    assert list(TERMS) == ["class", "softmax", "box", "cross", "feature", "assign"]
    assert set(BOX_TERMS) == {"class", "box", "assign"}
    for name, line in TERM_HELP.items():
        method, paper = TERMS[name].paper.split(", ")
        assert line.endswith(f"({method})"), name
        assert paper.startswith("arXiv:"), name
        assert "\n" not in line, name


def test_the_help_of_the_terms_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['ultralytics'] = None\n"
        "from drone_kd_training.distillation.terms import TERM_HELP; print(len(TERM_HELP))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "6\n", done.stderr
