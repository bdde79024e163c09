"""The site in a real browser: python docs/browse.py [--pictures FOLDER]; it looks at site/ as `make docs` wrote it.

Every page at the width of a phone and of a desk: it loads without an error in the console, asks nothing of other
addresses, is no wider than the screen, is dark where the reader wants it dark; and the search answers, from a folder
as well. Without chromium it says so and is done.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from html import unescape
from pathlib import Path
from typing import ClassVar

SITE = Path(__file__).resolve().parent.parent / "site"
WIDTHS = {"phone": 390, "desk": 1280}

# Loads each page in a frame of each width and writes what it found into its own title.
_VISITOR = """<!doctype html><meta charset="utf-8"><title>visiting</title><body><script>
const pages = PAGES, widths = WIDTHS, found = [];
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const visit = async (address, width) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  const loaded = new Promise((done) => frame.addEventListener("load", done, {once: true}));
  frame.src = address;
  document.body.append(frame);
  await loaded;
  return frame;
};
(async () => {
  for (const width of widths)
    for (const page of pages) {
      const frame = await visit("/" + page, width);
      const inside = frame.contentWindow, body = frame.contentDocument.body;
      const root = frame.contentDocument.documentElement;
      const ground = () => inside.getComputedStyle(body).backgroundColor;
      const says = (what) => found.push(`${page} at ${width} px: ${what}`);
      if (root.scrollWidth > width) {
        const wide = [...body.querySelectorAll("article *")].find((e) => e.getBoundingClientRect().right > width + 1);
        says(`${root.scrollWidth} px wide (${wide ? wide.outerHTML.slice(0, 80) : "?"})`);
      }
      // Wider than the screen, and in nothing that scrolls: its right part cannot be reached.
      const scrolls = (e) => e && e !== body
        && (/auto|scroll/.test(inside.getComputedStyle(e).overflowX) || scrolls(e.parentElement));
      const beyond = [...body.querySelectorAll("article *")].filter((e) => e.getBoundingClientRect().right > width + 1);
      const lost = beyond.find((e) => !scrolls(e));
      if (lost) says(`cut off: ${lost.outerHTML.slice(0, 80)}`);
      for (const entry of inside.performance.getEntriesByType("resource"))
        if (!entry.name.startsWith(location.origin) && !entry.name.startsWith("data:")) says(`asks ${entry.name}`);
      for (const image of frame.contentDocument.images)
        if (image.complete && !image.naturalWidth) says(`no picture ${image.getAttribute("src")}`);
      if (body.dataset.theme !== undefined) {
        body.dataset.theme = "light";
        const light = ground();
        body.dataset.theme = "dark";
        if (ground() === light) says("is not dark in the dark");
      }
      frame.remove();
    }
  const frame = await visit("/search.html?q=unfold", 390);
  let answers = 0;
  for (let i = 0; i < 100 && !answers; i += 1) {
    await wait(100);
    answers = frame.contentDocument.querySelectorAll("#search-results li").length;
  }
  if (!answers) found.push("search: no answer");
  document.title = JSON.stringify({found, answers, visits: pages.length * widths.length});
})();
</script>"""


class _Server(http.server.SimpleHTTPRequestHandler):
    """Serves the site and the visitor; says which pages are missing."""

    visitor = ""
    missing: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if self.path == "/visitor":
            body = self.visitor.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        if not self.path.endswith("favicon.ico"):
            self.missing.append(f"{self.path}: {code}")
        super().send_error(code, message, explain)

    def log_message(self, format: str, *args: object) -> None:
        pass


def browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def chromium(path: str, address: str, *more: str, limit: float = 60) -> subprocess.CompletedProcess[str]:
    """Run it without a screen, for which no name but this machine's has an address."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        return subprocess.run(
            [path, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
             "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", *more, address],
            capture_output=True, text=True, timeout=limit, check=True,
        )  # fmt: skip


def complaints(stderr: str) -> list[str]:
    """What pages wrote into the console."""
    return [line for line in stderr.splitlines() if "CONSOLE" in line and "Permissions policy" not in line]


def title(page: str) -> str:
    found = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    return unescape(found[1]) if found else ""


def visit(path: str, pages: list[str]) -> tuple[dict[str, object], list[str]]:
    """(what the visitor found on all pages, what the console says)."""
    _Server.visitor = _VISITOR.replace("PAGES", json.dumps(pages)).replace(
        "WIDTHS", json.dumps([*WIDTHS.values()])
    )
    _Server.missing.clear()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Server, directory=str(SITE))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/visitor"
        made = chromium(
            path, address, "--dump-dom", "--window-size=1400,1000", "--virtual-time-budget=600000", limit=300
        )
    finally:
        server.shutdown()
    said = title(made.stdout)
    assert said.startswith("{"), f"the visitor did not come back: {said}\n{made.stderr[-2000:]}"
    return json.loads(said), complaints(made.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of every page at both widths")
    where = parser.parse_args().pictures
    path = browser()
    if path is None:
        print("browser: skipped, no chromium is installed (Debian: apt-get install chromium)")
        return
    pages = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html"))
    assert pages, "no site; make docs writes it"
    found, console = visit(path, pages)
    wrong = [*found["found"], *console, *_Server.missing]  # type: ignore[misc]
    folder = chromium(
        path, f"{(SITE / 'search.html').as_uri()}?q=unfold", "--dump-dom", "--virtual-time-budget=10000"
    )
    if "<li" not in folder.stdout.partition('id="search-results"')[2].partition("</article>")[0]:
        wrong.append("search: no answer where the site is a folder without a server")
    if where is not None:
        where.mkdir(parents=True, exist_ok=True)
        for page in pages:
            for name, width in WIDTHS.items():
                to = where / f"{page.removesuffix('.html').replace('/', '.')}.{name}.png"
                chromium(path, (SITE / page).as_uri(), f"--screenshot={to}", f"--window-size={width},6000")
    if wrong:
        sys.exit("\n".join(["the site in a browser:", *wrong]))
    print(
        f"browser: {found['visits']} visits, nothing wrong; the search has {found['answers']} answers for 'unfold'"
    )


if __name__ == "__main__":
    main()
