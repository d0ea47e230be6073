"""palkit: parameter-efficient active learning for vision foundation models."""

import importlib
import sys

__version__ = "0.1.0"

NO_WINDOWS = (
    "palkit runs on Linux and macOS, and not on Windows itself; there, use the Windows Subsystem for Linux: run "
    "`wsl --install`, and install palkit in it."
)
if sys.platform == "win32":
    raise ImportError(NO_WINDOWS)
try:
    importlib.import_module("resource")  # Unix alone has it, and it is needed
except ModuleNotFoundError as error:
    raise ImportError(NO_WINDOWS) from error
