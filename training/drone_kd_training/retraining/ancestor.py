# SPDX-License-Identifier: AGPL-3.0-or-later
"""First model of a lineage, which the guard compares a candidate with beside the deployed one.

Each round may lose a little within its margin. Compared with a fixed model, losses do not add up.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from drone_kd.files import file_sha256
from drone_kd.lineage import Lineage
from drone_kd.text import one_line

# Files beside the parent that are searched.
_MAX_SEARCHED = 1000


def find_ancestor(given: str, parent: str, lineage: Lineage) -> tuple[Path | None, str]:
    """Return the file of the first model of a lineage, and one line if it is not known.

    ``given``: value of ``--ancestor``, or "". ``parent``: the deployed file, or "" if it is not
    known; its folder is searched for the first model. ``lineage``: of the candidate. Returns
    (None, "") if the deployed model is the first. Raises ValueError if ``given`` is no file, or
    another model than the first of the lineage.
    """
    first = lineage.ancestors[-1].sha256
    shown = first[:12]
    if given:
        path = Path(given)
        if not path.is_file():
            raise ValueError(f"--ancestor {one_line(given)}: no such file; give a .pt or .onnx")
        if parent and (own := file_sha256(path)) != first:
            raise ValueError(
                f"--ancestor {one_line(given)} is {own[:12]}, but the lineage of --parent begins "
                f"with {shown}: give that file"
            )
        return path, ""
    if not parent:
        return None, (
            "parent of the deployed model unknown, so losses of earlier rounds are not judged: "
            "give --parent or --ancestor"
        )
    if len(lineage.ancestors) == 1:
        return None, ""
    for path in islice(sorted(Path(parent).resolve().parent.glob("*.onnx")), _MAX_SEARCHED):
        if path.is_file() and file_sha256(path) == first:
            return path, ""
    return None, (
        f"first model of the lineage ({shown}) not found beside {one_line(parent)}, so losses of "
        "earlier rounds are not judged: give --ancestor"
    )
