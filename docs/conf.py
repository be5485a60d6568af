"""The documentation site: `make docs` executes its pages and builds it into build/docs; warnings are errors."""

import inspect
import os
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

import nbclient
from jupyter_cache.executors import utils as executors
from sphinx.ext.autodoc.preserve_defaults import update_defvalue
from sphinx.util.inspect import stringify_signature

import lma_jax

DOCS = Path(__file__).parent

# The notebooks run in this environment, whatever kernels the user has, and in temporary folders.
os.environ["JUPYTER_PATH"] = str(DOCS / "jupyter")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["PYTHONPATH"] = str(DOCS / "tutorials")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads would spin against those of XLA
# One page trains what another one has trained: it finds the compiled program here.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(DOCS.parent / f".cache/docs-{metadata.version('jaxlib')}"))

project = "LMA"
author = "the contributors of LMA"
copyright = "the contributors of LMA, Apache-2.0"
release = lma_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["cifar10"]  # what pages include

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_render_markdown_format = "myst"
# MyST-NB itself would end a line wherever the pieces of a command's output meet.
executors.executenb = partial(nbclient.execute, coalesce_streams=True)

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
default_role = "code"
python_display_short_literal_types = True
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = f"LMA {release}"
html_static_path = ["static"]
html_css_files = ["lma.css"]
html_copy_source = False
html_use_index = False  # the search finds names
html_theme_options = {
    "navbar_persistent": [],  # the search is in the sidebar
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
copybutton_exclude = ".linenos, .gp, .go"


# Files outside of this folder that pages include: a link to the file leads to the page.
INCLUDED = {
    "../README.md": "index.md",
    "../benchmarks/README.md": "benchmarks.md",
    "../CHANGELOG.md": "changelog.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../SECURITY.md": "security.md",
}


def link_to_pages(_app, _docname, source):
    """Changes links that are right in the repository's web view to those of the site."""
    for file, page in INCLUDED.items():
        source[0] = source[0].replace(f"]({file}", f"]({page}")


def signature_of_class(app, what, _name, obj, _options, signature, return_annotation):
    """The signature of a class is that of its __init__, which the metaclass of Flax's modules hides."""
    if what != "class":
        return signature, return_annotation
    update_defvalue(app, obj.__init__, bound_method=False)
    _, *parameters = inspect.signature(obj.__init__).parameters.values()
    return stringify_signature(inspect.Signature(parameters), unqualified_typehints=True), return_annotation


def setup(app):
    app.connect("source-read", link_to_pages)
    app.connect("autodoc-process-signature", signature_of_class)
