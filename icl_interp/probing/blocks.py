"""How a finding is shown: closed data, arrays and words, no figures.  A report turns each kind into a picture.

Every block carries `alt`: what a reader who cannot see the picture should know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from icl_interp.errors import ConfigError

Cell = str | int | float | bool | None


class _Shown:
    alt: str

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ConfigError(f"a {type(self).__name__} needs an alt text that says what it shows")
        self._check()

    def _check(self) -> None:
        pass


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
    """Rows of cells under named columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    alt: str
    title: str = ""

    def _check(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ConfigError(f"a row of {len(row)} cells under {len(self.columns)} columns: {row}")


@dataclass(frozen=True, eq=False)
class Heatmap(_Shown):
    """Matrices side by side on one symmetric colour scale; NaN entries are left out (inert parts of a circuit)."""

    matrices: Float[np.ndarray, "panels rows columns"]
    panels: tuple[str, ...]
    alt: str
    title: str = ""
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()

    def _check(self) -> None:
        if len(self.panels) != len(self.matrices):
            raise ConfigError(f"{len(self.panels)} panel names for {len(self.matrices)} matrices")


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
        if self.y.shape != (len(self.names), len(self.x)):
            raise ConfigError(f"y must be ({len(self.names)}, {len(self.x)}) for its names and x, got {self.y.shape}")


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
        if self.x.shape != self.y.shape or len(self.names) not in (0, len(self.x)):
            raise ConfigError(f"x {self.x.shape}, y {self.y.shape} and {len(self.names)} names do not belong together")


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
        if self.values.shape != (len(self.names),):
            raise ConfigError(f"{len(self.names)} names for values of shape {self.values.shape}")


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
        if self.z.shape != (len(self.y), len(self.x)):
            raise ConfigError(f"z must be ({len(self.y)}, {len(self.x)}), got {self.z.shape}")


Block = Text | Equation | Table | Heatmap | Lines | Scatter | Bars | Surface
