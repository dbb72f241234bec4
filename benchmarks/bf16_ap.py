"""What bf16 costs in AP: the shipped `mini` on the toybox's validation pictures, in float32 and in bf16.

    python -m benchmarks.bf16_ap --data data/toybox

The two may lie .005 of AP apart. Speed is not measured here: many processors emulate bf16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import minimrcnn
from benchmarks.common import start
from minimrcnn.datasets.coco import CocoDataset, find_split
from minimrcnn.engine.evaluate import evaluate


def main() -> None:
    """Both precisions on the same pictures, and how far apart they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/toybox"), help="a toybox of 192 px")
    data = parser.parse_args().data
    start()
    model = minimrcnn.mini(weights="TOYBOX").eval()
    dataset = CocoDataset(*find_split(data, "val"))
    found = {amp: evaluate(model, dataset, batch_size=4, device="cpu", amp=amp) for amp in ("off", "bf16")}
    for kind in ("bbox", "segm"):
        exact, rounded = (found[amp][kind]["AP"] for amp in ("off", "bf16"))
        print(f"{kind} AP: float32 {exact:.4f}, bf16 {rounded:.4f}, apart {abs(exact - rounded):.4f}")


if __name__ == "__main__":
    main()
