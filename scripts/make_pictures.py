#!/usr/bin/env python3
"""Make the pictures of pages in docs/pictures anew, from a real short run; by hand, after a page has changed.

    .venv/bin/python scripts/make_pictures.py                 # trains the quickstart for 300 updates first
    .venv/bin/python scripts/make_pictures.py --keep /tmp/pictures   # again, without training again
    .venv/bin/python scripts/make_pictures.py --demo demo     # also demo-loss.png, of a `make demo`

It needs Chromium (Debian: `apt install chromium`). `scaling.png` is made by `benchmarks/scaling_model.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
UPDATES = 300
RUN = ["--config", str(ROOT / "configs/quickstart.yaml")]
# Name -> page below the folder of the run, width and height in pixels.
PAGES = {
    "prepared-data.png": ("data/quickstart/report.html", 1000, 1150),
    "run-report.png": ("runs/first/tables/report.html", 1000, 1250),
    "evaluation.png": ("runs/first/evaluation/evaluation.html", 1000, 1250),
}
TENSORBOARD = ("tensorboard.png", 1280, 900)


def main() -> int:
    """Make them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="where the run lies; trained if it is not there"
    )
    parser.add_argument("--demo", type=Path, metavar="DIR", help="the folder of a `make demo`")
    options = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("error: there is no Chromium here; Debian's package is called chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="pictures-") as scratch:
        folder = (options.keep or Path(scratch) / "run").absolute()
        if not (folder / "runs/first/evaluation").is_dir():
            make_run(folder)
        write_pages(folder)
        for name, (page, width, height) in PAGES.items():
            photograph(browser, Path(scratch), (folder / page).as_uri(), name, width, height)
        photograph_tensorboard(browser, Path(scratch), folder / "runs")
    if options.demo:
        from horovod_transformer.reports.plotting import draw_curve

        draw_curve(options.demo / "run/runs/demo/tables", PICTURES / "demo-loss.png", "demo")
    return 0


def make_run(folder: Path) -> None:
    """Prepare, train and evaluate the quickstart, shortened."""
    folder.mkdir(parents=True, exist_ok=True)
    every = str(UPDATES // 6)
    more = ["--training.max_updates", str(UPDATES), "--training.eval_interval", every, "--run_name", "first"]
    for command in (
        ["prepare", *RUN],
        ["train", *RUN, *more],
        ["evaluate", "--checkpoint", "runs/first/checkpoints/best_model.pt", "--samples", "8"],
    ):
        subprocess.run([sys.executable, "-m", "horovod_transformer", *command], cwd=folder, check=True)


def write_pages(folder: Path) -> None:
    """Write the pages again, as the code is now."""
    from horovod_transformer.reports.evaluation import to_html
    from horovod_transformer.reports.prepared_data import report_page
    from horovod_transformer.reports.runs import write_run_report

    for page, write in (("prepared-data.png", report_page), ("evaluation.png", to_html)):
        path = folder / PAGES[page][0]
        values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        path.write_text(write(values), encoding="utf-8")
    write_run_report([folder / "runs/first"], folder / PAGES["run-report.png"][0])


def photograph(
    browser: str, scratch: Path, address: str, name: str, width: int, height: int, *more: str
) -> None:
    """Write a picture of a page as a screen of this size shows it."""
    picture = PICTURES / name
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *more]
    command += [f"--user-data-dir={scratch / 'browser'}", f"--window-size={width},{height}"]
    subprocess.run([*command, f"--screenshot={picture}", address], check=True, stderr=subprocess.DEVNULL)
    print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size:,} bytes")


def photograph_tensorboard(browser: str, scratch: Path, runs: Path) -> None:
    """Start TensorBoard on a port of its own, and write a picture of it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}data/runs", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        # Its cards are drawn by scripts, which get this many milliseconds.
        photograph(
            browser,
            scratch,
            f"{address}?darkMode=false#timeseries",
            *TENSORBOARD,
            "--virtual-time-budget=20000",
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
