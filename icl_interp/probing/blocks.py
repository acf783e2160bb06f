"""How a finding is shown: closed data, arrays and words, no figures.  A report turns each kind into a picture.

Every block carries `alt`: what a reader who cannot see the picture should know.  A block whose parts do not belong
together raises `ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from icl_interp.errors import ConfigError
from icl_interp.estimates import Estimate

Cell = str | int | float | bool | Estimate | None


_WORDS = {"name", "tex", "text", "title", "x_label", "y_label"}


class _Shown:
    """What every block has in common: an alternative in words, and the checks."""

    alt: str

    def __post_init__(self) -> None:
        if not (isinstance(self.alt, str) and self.alt.strip()):
            raise ConfigError(f"a {type(self).__name__} needs an alt text that says what it shows, got {self.alt!r}")
        for name in _WORDS & vars(self).keys():
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{type(self).__name__}.{name} must be text, got {_brief(getattr(self, name))}")
        self._check()

    def _check(self) -> None:
        pass

    def _need(self, *shape: int | None, **arrays: object) -> None:
        """Raise unless each of `arrays` is an array of numbers of this shape; None stands for any size."""
        for name, array in arrays.items():
            where = f"{type(self).__name__}.{name}"
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
                raise ConfigError(f"{where} must be a numpy array of numbers, got {_brief(array)}")
            if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
                wanted = ", ".join("any" if n is None else str(n) for n in shape)
                raise ConfigError(f"{where} must have shape ({wanted}), got {array.shape}")

    def _name(self, count: int, **names: tuple[str, ...]) -> None:
        """Raise unless each of `names` has `count` entries, all of them text."""
        for name, entries in names.items():
            if len(entries) != count:
                raise ConfigError(f"{type(self).__name__}.{name} must have {count} entries, got {len(entries)}")
            for entry in entries:
                if not isinstance(entry, str):
                    raise ConfigError(f"{type(self).__name__}.{name} must hold text, got {_brief(entry)}")


@dataclass(frozen=True)
class Text(_Shown):
    """A paragraph; the text is its own alternative."""

    text: str

    @property
    def alt(self) -> str:  # type: ignore[override]
        """The text itself."""
        return self.text


@dataclass(frozen=True)
class Equation(_Shown):
    """A formula in TeX."""

    tex: str
    alt: str


@dataclass(frozen=True)
class Table(_Shown):
    """Rows of cells under named columns; an `Estimate` is shown with its interval.

    `first_screen` asks for a place at the top of a report too: for what a reader wants before anything else.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    alt: str
    title: str = ""
    first_screen: bool = False

    def _check(self) -> None:
        self._name(len(self.columns), columns=self.columns)
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ConfigError(f"a row of {len(row)} cells under {len(self.columns)} columns: {_brief(row)}")
            for cell in row:
                if not isinstance(cell, Cell):
                    raise ConfigError(
                        f"a cell must be text, a plain number, a bool, an Estimate or None, got {_brief(cell)}"
                    )
                if isinstance(cell, int) and cell.bit_length() > 1023:  # Python refuses to write out larger ones
                    raise ConfigError(
                        f"a whole number in a cell must be below 1e308, got one of {cell.bit_length()} bits"
                    )


@dataclass(frozen=True, eq=False)
class Heatmap(_Shown):
    """Matrices side by side on one symmetric colour scale; NaN entries are left out (inert parts of a circuit).

    `first_screen` is as a table's; large matrices find no place there.
    """

    matrices: Float[np.ndarray, "panels rows columns"]
    panels: tuple[str, ...]
    alt: str
    title: str = ""
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()
    first_screen: bool = False

    def _check(self) -> None:
        self._need(None, None, None, matrices=self.matrices)
        panels, rows, columns = self.matrices.shape
        self._name(panels, panels=self.panels)
        self._name(rows if self.row_labels else 0, row_labels=self.row_labels)
        self._name(columns if self.column_labels else 0, column_labels=self.column_labels)


@dataclass(frozen=True, eq=False)
class Frames(_Shown):
    """One row of heat maps at several moments, on one colour scale: a slider goes through them.

    `moments` ascend; `name` says what they are (steps of the training, unless told).
    """

    matrices: Float[np.ndarray, "moments panels rows columns"]
    moments: Int[np.ndarray, "moments"]
    panels: tuple[str, ...]
    alt: str
    title: str = ""
    name: str = "step"
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()

    def _check(self) -> None:
        self._need(None, moments=self.moments)
        self._need(len(self.moments), None, None, None, matrices=self.matrices)
        ascend = (self.moments[1:] > self.moments[:-1]).all()  # no differences: those of unsigned numbers wrap around
        if self.moments.dtype.kind not in "iu" or not len(self.moments) or not ascend:
            raise ConfigError(
                f"Frames.moments must be ascending whole numbers, one at least, got {_brief(self.moments)}"
            )
        self.at(0)

    def at(self, index: int) -> Heatmap:
        """The heat maps of one moment."""
        title = f"{self.title}, {self.name} {self.moments[index]:,}".removeprefix(", ")
        return Heatmap(self.matrices[index], self.panels, self.alt, title, self.row_labels, self.column_labels)


@dataclass(frozen=True, eq=False)
class Lines(_Shown):
    """Curves over one x axis, each with an optional band from `low` to `high`."""

    x: Float[np.ndarray, "points"]
    y: Float[np.ndarray, "curves points"]
    names: tuple[str, ...]
    alt: str
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    low: Float[np.ndarray, "curves points"] | None = None
    high: Float[np.ndarray, "curves points"] | None = None

    def _check(self) -> None:
        self._need(None, x=self.x)
        bands = {name: band for name in ("low", "high") if (band := getattr(self, name)) is not None}
        self._need(len(self.names), len(self.x), y=self.y, **bands)
        self._name(len(self.names), names=self.names)


@dataclass(frozen=True, eq=False)
class Scatter(_Shown):
    """Points, each with an optional name."""

    x: Float[np.ndarray, "points"]
    y: Float[np.ndarray, "points"]
    alt: str
    names: tuple[str, ...] = ()
    title: str = ""
    x_label: str = ""
    y_label: str = ""

    def _check(self) -> None:
        self._need(None, x=self.x)
        self._need(len(self.x), y=self.y)
        self._name(len(self.x) if self.names else 0, names=self.names)


@dataclass(frozen=True, eq=False)
class Bars(_Shown):
    """One bar a name, with optional intervals."""

    names: tuple[str, ...]
    values: Float[np.ndarray, "bars"]
    alt: str
    title: str = ""
    y_label: str = ""
    low: Float[np.ndarray, "bars"] | None = None
    high: Float[np.ndarray, "bars"] | None = None

    def _check(self) -> None:
        bands = {name: band for name in ("low", "high") if (band := getattr(self, name)) is not None}
        self._need(len(self.names), values=self.values, **bands)
        self._name(len(self.names), names=self.names)


@dataclass(frozen=True, eq=False)
class Surface(_Shown):
    """A function of two variables on a grid: z[i, j] belongs to (x[j], y[i])."""

    x: Float[np.ndarray, "columns"]
    y: Float[np.ndarray, "rows"]
    z: Float[np.ndarray, "rows columns"]
    alt: str
    title: str = ""
    x_label: str = ""
    y_label: str = ""

    def _check(self) -> None:
        self._need(None, x=self.x, y=self.y)
        self._need(len(self.y), len(self.x), z=self.z)


def _brief(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:100]!r}"


Block = Text | Equation | Table | Heatmap | Frames | Lines | Scatter | Bars | Surface
