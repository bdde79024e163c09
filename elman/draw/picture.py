"""A picture that can be shown and saved, whatever it shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from elman.data.files import refusing, writing
from elman.draw import raster
from elman.errors import InputError


class Picture:
    """It shows itself in a notebook; `save` writes it to a file. title: what it is called.

    make: its SVG, asked for when it is first shown.
    """

    def __init__(self, title: str, make: Callable[[], str]) -> None:
        self.title, self._make = title, make

    @cached_property
    def svg(self) -> str:
        """The text of the picture."""
        return self._make()

    def save(self, path: str | Path) -> Path:
        """Write the picture and return its path. What kind of file it is, the ending says.

        .svg: text stays text; light and dark surroundings. .png (twice as large), .pdf: light; they need
        `pip install "elman[draw]"`.
        Raises InputError for another ending, DataError where no file can be written, NotSupported where the package
        for .png and .pdf is missing. What stood there before stays until the new file is whole.
        """
        path, kinds = Path(path), self._kinds()
        if path.suffix.lower() not in kinds:
            raise InputError(
                what="no picture can be written into such a file", where="save(path)", got=path.name,
                expected=f"a name that ends in {', '.join(kinds)}", mend="give the file another ending",
            )  # fmt: skip
        content = kinds[path.suffix.lower()]()
        with (
            refusing("the picture cannot be written", path, "make its folder, or choose another place"),
            writing(path) as file,
        ):
            file.write(content)
        return path

    def _kinds(self) -> dict[str, Callable[[], bytes]]:
        """Ending of a file's name -> what is written into it."""
        return {
            ".svg": lambda: (self.svg + "\n").encode(),
            ".png": lambda: raster.png(self.svg),
            ".pdf": lambda: raster.pdf(self.svg),
        }

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"<picture: {self.title}>"
