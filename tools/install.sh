#!/usr/bin/env bash
# tools/install.sh [PYTHON [VENV [CONSTRAINTS]]]: install wsipipe and its development tools; `make` calls this once.
# A CPU-only PyTorch with torchvision that this Python can import is used; otherwise PyTorch is downloaded with CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3} venv=${2:-.venv} constraints=${3:-constraints.txt}

cpu_torch=$("$python" 2>/dev/null <<'END' || true
from pathlib import Path
import torch, torchvision.ops
if torch.version.cuda is None and torch.version.hip is None:
    print(Path(torch.__file__).parents[1])
END
)

echo "wsipipe: installing into $venv, once."
if [ -n "$cpu_torch" ]; then
    echo "  What: wsipipe, its libraries and the tools of its tests; the CPU-only PyTorch of $cpu_torch is used."
    echo "  Disk: about 1 GB. Time: a few minutes."
else
    echo "  What: wsipipe, its libraries, the tools of its tests, and PyTorch with CUDA."
    echo "  Disk: 6.3 GB, 5.2 GB of them PyTorch with CUDA. Time: about 10 minutes on 2 cores with a fast network."
    echo "  Without a GPU a CPU-only PyTorch does: see 'Installation' in README.md."
fi

"$python" -m venv "$venv"
if [ -n "$cpu_torch" ]; then
    echo "$cpu_torch" > "$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/cpu_torch.pth"
    sed -E '/^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/d' "$constraints" > "$venv/constraints.txt"
else
    cp "$constraints" "$venv/constraints.txt"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_OPTIONS:-} \
    --constraint "$venv/constraints.txt" --editable '.[dev]'
"$venv/bin/python" -c "import torchvision.ops"  # a torch and torchvision that do not match fail here, not later
