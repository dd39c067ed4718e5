"""The API reference: a page of every public name, from the docstrings. Needs pdoc.

python tools/api_reference.py DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import ffnskip_cpp


def main(folder: Path) -> None:
    for name in ffnskip_cpp.__all__:  # those that are imported when they are asked for, too
        setattr(ffnskip_cpp, name, getattr(ffnskip_cpp, name))
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("ffnskip_cpp", output_directory=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
