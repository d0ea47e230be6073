"""Settings of the documentation, which Sphinx makes: `./run_all.sh docs`."""

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

project = html_title = "palkit"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["notebooks/sweeps", "notebooks/executed"]
smartquotes_action = "D"  # dashes, not quotes

nb_execution_mode = "off"  # notebooks are committed executed

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
default_role = "py:obj"  # `ImagePool` in a docstring is a link
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
pygments_dark_style = "a11y-dark"
html_theme_options = {"top_of_page_buttons": ["view"]}
html_static_path = ["_static"]
html_css_files = ["palkit.css"]
html_show_copyright = False
html_domain_indices = False
html_sourcelink_suffix = ""
copybutton_prompt_text = ">>> "


def note_real_paths(app: Sphinx, env: BuildEnvironment, names: list[str]) -> None:
    """Let links between pages lead to those that are links themselves, such as docs/notebooks: Sphinx follows these."""
    app.project._path_to_docname |= {env.doc2path(name).resolve(): name for name in env.found_docs}


def returns_are_prose(
    app: Sphinx, kind: str, name: str, value: object, options: dict[str, bool], lines: list[str]
) -> None:
    """Keep napoleon from taking what stands before a colon in "Returns" for a type."""
    lines[:] = [":returns:" if line == "Returns:" else line for line in lines]


def source_of(app: Sphinx, module: str, name: str) -> str | None:
    """Link the source of a name and its module's page, not that of the front door, which shows some again."""
    return module if module == "palkit" else None


def setup(app: Sphinx) -> None:
    app.connect("env-before-read-docs", note_real_paths)
    app.connect("autodoc-process-docstring", returns_are_prose, priority=400)  # before napoleon
    app.connect("viewcode-follow-imported", source_of)
