"""Is anybody there to look at a widget?"""

import os

from IPython.core.getipython import get_ipython

from palkit.errors import unknown_name

VARIABLE = "PALKIT_WIDGETS"
CHOICES = ("live", "static")


def is_live() -> bool:
    """Whether the cell that is running was sent by a page that can show widgets.

    JupyterLab, Notebook 7 and VS Code send the id of the cell along, and Voila names itself; papermill, nbclient and
    nbval do neither, and get pictures instead. The variable PALKIT_WIDGETS ("live" or "static") overrides that.

    Raises:
        ConfigError: the variable has another value.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is not None:
        if wanted not in CHOICES:
            raise unknown_name(f"value of {VARIABLE}", wanted, CHOICES)
        return wanted == "live"
    shell = get_ipython()
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return False
    if os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
        return True
    return "cellId" in kernel.get_parent("shell").get("metadata", {})
