"""A line that says what a widget is doing, for eyes and for screen readers."""

from pathlib import Path

import anywidget
import traitlets

HERE = Path(__file__).parent
KINDS = ("idle", "busy", "problem")


class StatusLine(anywidget.AnyWidget):
    """Text, and while busy a bar. Its stylesheet is also that of `Explorer`."""

    _esm = HERE / "status.js"
    _css = HERE / "status.css"
    text = traitlets.Unicode().tag(sync=True)
    kind = traitlets.Enum(KINDS, "idle").tag(sync=True)
    done = traitlets.Int().tag(sync=True)
    total = traitlets.Int().tag(sync=True)

    def say(self, text: str, kind: str = "idle", done: int = 0, total: int = 0) -> None:
        """Say something.

        Args:
            text: a sentence.
            kind: "idle", "busy" or "problem".
            done, total: of the bar, shown while busy.
        """
        with self.hold_sync():
            self.text, self.kind, self.done, self.total = text, kind, done, total
