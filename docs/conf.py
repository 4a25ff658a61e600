"""Configuration of the documentation. Build it with: python -m sphinx -W --keep-going -b html docs docs/_build/html"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the gallery is small: threads would only get in each other's way

import matplotlib

matplotlib.use("Agg")

import brenier

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "brenier"
author = "The brenier developers"
copyright = author
version = release = brenier.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "built",  # _ext/built.py: tables made at build time
]

exclude_patterns = ["_build", "_ext", "examples"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "literal"  # docstrings write `code` with single backticks
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # an override without a docstring of its own needs no second entry
autodoc_type_aliases = {name: name for name in ("ArrayLike", "NDArray", "Array", "Lines")}
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# a returned value is described in words here; napoleon would read what stands before a colon as its type
napoleon_custom_sections = ["Complexity", "Reference", "Returns"]

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "plot_gallery": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,  # the same build gives the same page
    "capture_repr": (),
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
    "within_subsection_order": "built.GalleryOrder",
}

html_theme = "furo"
html_title = "brenier"
html_show_copyright = False
html_last_updated_fmt = None
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
