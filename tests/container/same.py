"""Are the predictions of two `eval --json` files the same on every image? `same.py X86 ARM`; exit 1 if not."""

import json
import sys
from pathlib import Path

here, there = (json.loads(Path(name).read_text()) for name in sys.argv[1:])
assert here["sha256"] == there["sha256"], "two different models"
differ = [
    at for at, pair in enumerate(zip(here["predictions"], there["predictions"], strict=True)) if pair[0] != pair[1]
]
sys.stdout.write(
    f"accuracy {there['accuracy']:.4f} on {there['samples']} images; predictions differ from x86 on {len(differ)}"
    f"{': ' + str(differ[:10]) if differ else ''}\n"
)
sys.exit(1 if differ else 0)
