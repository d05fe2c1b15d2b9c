"""Does a campaign work from a plain copy of the tree, with six packages and no others? By hand, for any Python:

    python tests/bare_environment.py --python python3.13 --torch 2.11.0

makes a virtual environment in a temporary folder and installs torch, numpy, pandas, safetensors, pyarrow and Pillow
from PyPI (several GB; --pip passes options on), or takes the environment of the interpreter named by --installed.
tests/test_campaign.py asks the same of the packages that are installed already.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["numpy", "pandas", "safetensors", "pyarrow", "Pillow"]
# The pack is written by the environment on trial, so that this script needs no packages itself.
_PACK = """
import io, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
rng = np.random.default_rng(0)
for split in ("train", "test"):
    images = []
    for pixels in rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue()})
    pq.write_table(pa.table({"image": images, "label": list(range(8))}), f"{sys.argv[1]}/cifar10-{split}.parquet")
"""
_ABSENT = ("tqdm", "sklearn", "scipy", "matplotlib", "snakemake", "papermill", "yaml")


def campaign_works(python: str, folder: Path) -> str:
    """`reduced` on a small CIFAR-10, from copied sources without git or installation: killed, then stopped in time.

    Args:
        python: an interpreter with torch and `PACKAGES`.
        folder: an empty one, for the copy and its results.

    Returns:
        What the last campaign said.
    """
    copy = folder / "copy"
    (copy / "book").mkdir(parents=True)
    shutil.copytree(ROOT / "nladv_core", copy / "nladv_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    # No published weights here, and no compiler: steps in bfloat16 would be compiled before they are timed.
    for name, expected in (("tiers", 2), ("pilot", 1)):  # of the tiers reduced and paper, and of all of the pilot
        source = copy / "nladv_core" / f"{name}.py"
        text, count = re.subn(r',?\s*precision="bfloat16"(?=,?\s*\))', "", source.read_text())
        assert count == expected, name
        source.write_text(text.replace("HELD_OUT = 5000", "HELD_OUT = 2"))  # of seven images
    experiments = copy / "nladv_core" / "experiments.py"
    text, count = re.subn(r'(_PUBLISHED_NET = ")akamaster/', r"\1", experiments.read_text())
    assert count == 1, "the network of chapter 10"
    experiments.write_text(text)
    pack = folder / "data" / "cifar10"
    pack.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NLADV_", "PYTHON"))}
    environment |= {"PYTHONPATH": str(copy), "NLADV_DATA": str(folder / "data"), "OMP_NUM_THREADS": "1"}
    told: dict[str, Any] = {"env": environment, "cwd": folder, "text": True}
    subprocess.run([python, "-c", _PACK, str(pack)], check=True, **told)
    for absent in _ABSENT:
        found = subprocess.run([python, "-c", f"import {absent}"], capture_output=True, check=False, **told)
        assert "ModuleNotFoundError" in found.stderr, f"{absent} is there, so nothing is proved about its absence"
    command = [python, "-m", "nladv_core.cli"]
    # 50,000 images would be expected: a first result must correct that, so the first campaign has time in plenty.
    first = [*command, "campaign", "--tier", "reduced", "--device", "cpu", "--minutes", "300", "--workers", "1"]
    process = subprocess.Popen(first, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **told)
    assert process.stdout is not None
    said = [process.stdout.readline()]
    while said[-1].startswith("left out"):  # other data than CIFAR-10
        said = [process.stdout.readline()]
    while said[-1] and not said[-1].startswith("done "):
        said.append(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert said[0].startswith("reduced on cpu, 300 minutes") and said[-1].startswith("done "), (said, errors)
    # Before it, how long each experiment takes.
    hours = [
        re.fullmatch(r".+: \d+ runs, [\d.]+ (?:s|min|h); done after [\d.]+ (?:s|min|h)\n", line) for line in said[1:-1]
    ]
    assert len(hours) > 3 and all(hours), said
    store = copy / "data" / "cache" / "runs"
    (record,) = store.glob("*.json")
    again = [*command, "campaign", "--tier", "reduced", "--device", "cpu", "--minutes", "0.3", "--workers", "2"]
    done = subprocess.run(again, capture_output=True, check=False, **told)
    assert done.returncode == 0 and not done.stderr, done.stderr
    (total,) = re.findall(r"(\d+) of \1 runs left", said[0])
    assert f"{int(total) - 1} of {total} runs left" in done.stdout, done.stdout
    assert "runs left" in done.stdout.splitlines()[-1], done.stdout
    assert not list(store.glob("*.tmp"))
    why = subprocess.run([*command, "why", record.stem], capture_output=True, check=True, **told).stdout
    assert "done: computed" in why, why
    status = subprocess.run([*command, "status"], capture_output=True, check=True, **told).stdout
    assert " runs in " in status, status
    made = json.loads(record.read_text())
    return f"Python {made['python']}, torch {made['torch']}: {done.stdout.splitlines()[-1]}"


def main() -> None:
    """Make the environment, or take one, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter to make the environment with")
    parser.add_argument("--torch", default="2.11.0", help="its version")
    parser.add_argument("--pip", default="", help="options for pip install")
    parser.add_argument("--installed", help="an interpreter that has the packages already")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = given.installed
        if python is None:
            subprocess.run([given.python, "-m", "venv", str(folder / "bare")], check=True)
            python = str(folder / "bare" / "bin" / "python")
            install = [python, "-m", "pip", "install", "--quiet", *given.pip.split(), f"torch=={given.torch}"]
            subprocess.run([*install, *PACKAGES], check=True)
        (folder / "work").mkdir()
        print(campaign_works(python, folder / "work"))


if __name__ == "__main__":
    main()
