"""SVG as PNG and PDF, through cairosvg, which comes with `pip install "elman[draw]"`."""

from __future__ import annotations

from typing import Any

from elman.errors import NotSupported


def png(svg: str) -> bytes:
    return _cairo().svg2png(bytestring=svg.encode(), scale=2)


def pdf(svg: str) -> bytes:
    return _cairo().svg2pdf(bytestring=svg.encode())


def _cairo() -> Any:
    try:
        import cairosvg
    except (ImportError, OSError) as error:  # OSError: the package is there, and libcairo is not
        raise NotSupported(
            what="writing .png and .pdf needs a package that is not installed", where="Drawing.save(path)",
            got=str(error), mend='pip install "elman[draw]" and, if it is missing, the system\'s libcairo2; .svg and '
            ".html need neither",
        ) from None  # fmt: skip
    return cairosvg


__all__ = ["pdf", "png"]
