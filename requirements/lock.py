"""Pins for what pip resolves: its report (`pip install --dry-run --report -`) on stdin, constraints on stdout."""

import json
import re
import sys

# PyTorch is chosen by the machine, and these two with it: `make TORCH=...`.
LEFT_OUT = {"torch", "torchaudio", "torchvision", "weight-averaging"}

print("# What `make` installs: what setup.cfg asks for, as `make lock` resolved it. The library needs none of it.")
packages = [item["metadata"] for item in json.load(sys.stdin)["install"]]
for name, version in sorted((re.sub(r"[-_.]+", "-", item["name"]).lower(), item["version"]) for item in packages):
    if name not in LEFT_OUT:
        print(f"{name}=={version}")
