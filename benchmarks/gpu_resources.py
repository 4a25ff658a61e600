"""What the Triton kernels need of a card, without one: registers, spills and shared memory, compiled for sm_90.

    python benchmarks/gpu_resources.py [--arch 90] [--kernels softmin apply ...] [--dtypes float32 float64] [--quick]
                                       [--accuracy ieee tf32x3 tf32] [--json results/gpu.json]

Each kernel is compiled for the candidates of `triton_tuning`, for squared Euclidean costs of 3, 64 and 512 coordinates
and Euclidean ones of 3 (kind "l2"), dense and with blocks. Registers and spills are what Triton's own ptxas says of the
PTX. --quick takes the first candidate and dense rows alone. The file keeps what `benchmarks/gpu.py` has written to it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.exit("TRITON_INTERPRET=1 is for the interpreter; unset it to compile")

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from brenier.kernels import native, triton_kernels, triton_pairs, triton_tiny, triton_tuning
from brenier.kernels.build import accuracy

POINTERS = {"x", "y", "f", "g", "h", "v", "left", "right", "term", "out", "mass", "price", "scores", "r", "c", "plan",
            "error", "grad", "d_scores", "d_r", "d_c", "epsilon"}  # fmt: skip
REAL_POINTERS = {"limits", "values"}  # float32 where the tensors are bfloat16
INDEX_POINTERS = {"index", "counts", "starts", "cols", "iterations", "schedule", "row_starts", "col_starts", "indptr",
                  "col_blocks"}  # fmt: skip
OWED = "owed: no card was there to run benchmarks/gpu.py on"
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}


def signature(kernel: Any, constants: dict[str, Any], dtype: torch.dtype) -> dict[str, str]:
    """The type of each argument; "r" of the pairs is a number."""
    tiny = kernel in triton_tiny.KERNELS.values()
    out = {}
    for name in kernel.arg_names:
        if name in constants:
            out[name] = "constexpr"
        elif name in INDEX_POINTERS:
            out[name] = "*i64"
        elif name in POINTERS and (tiny or name != "r"):
            out[name] = "*" + NAMES[dtype]
        elif name in REAL_POINTERS or (name == "out" and kernel is triton_kernels.KERNELS["minima"]):
            out[name] = "*fp64" if dtype == torch.float64 else "*fp32"
        else:
            out[name] = "fp32" if name == "tol" else "i32"
    return out


def resources(kernel: Any, constants: dict[str, Any], dtype: torch.dtype, arch: int) -> dict[str, Any]:
    """Compile one kernel, and ask ptxas."""
    launch = {k: constants.pop(k) for k in ("num_warps", "num_stages", "enable_fp_fusion") if k in constants}
    types = signature(kernel, constants, dtype)
    attributes = {(k,): [["tt.divisibility", 16]] for k, name in enumerate(types) if types[name].startswith("*")}
    source = ASTSource(kernel, types, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch)
    ptx = compiled.asm["ptx"]
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    ptxas = get_ptxas(arch).path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [ptxas, "-v", f"--gpu-name={target[1]}", str(path), "-o", str(path.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    number = {
        key: int(match[1]) if (match := re.search(pattern, said)) else 0
        for key, pattern in (
            ("registers", r"Used (\d+) registers"),
            ("spill_stores", r"(\d+) bytes spill stores"),
            ("spill_loads", r"(\d+) bytes spill loads"),
        )
    }
    return number | {"shared": compiled.metadata.shared}


def cases(quick: bool, names: list[str], dtypes: list[torch.dtype]) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """Kernels by label, with their constants."""
    found = []
    for name in names:
        if name in triton_tiny.KERNELS:
            for dtype in (d for d in dtypes if d != torch.bfloat16):
                for side in (8, 64) if quick else (4, 8, 16, 32, 64):
                    constants = triton_tiny.options(name, side, side, dtype) | {"GIVEN": False}
                    found.append((f"{name} {side} x {side}", triton_tiny.KERNELS[name], constants, dtype))
            continue
        shapes = (("dot", 3), ("dot", 64), ("dot", 512), ("l2", 3))
        for kind, d in shapes:
            if name == "slope" and kind == "dot":
                continue
            for dtype in dtypes:
                for blocks in (False,) if quick else (False, True):
                    rows = torch.empty(64, d, dtype=dtype, device="meta")  # not on a CPU, where it is the interpreter
                    task = triton_pairs._Task(name, kind, rows, rows, 1, None, 1)
                    configs = triton_tuning.candidates(name, task.products, dtype)
                    for config in configs[:1] if quick else configs:
                        constants = task.options(config) | {"BLOCKS": blocks}
                        if name == "minima":
                            constants["BN"] = triton_pairs._LANES
                        if name == "apply":
                            constants |= {"LINEAR": False, "ONE": True, "BV": 16, **triton_pairs._weights(None)}
                        if name == "slope":
                            del constants["RESIDENT"]
                            constants |= {"BD": 4, **triton_pairs._weights(None)}
                        label = f"{name} {kind} d={d} {config.rows}x{config.cols}x{constants['BK']}"
                        found.append(
                            (label + (" blocks" if blocks else ""), triton_kernels.KERNELS[name], constants, dtype)
                        )
                        if name == "apply":
                            wide = constants | {"ONE": False, "BV": 64}
                            found.append((label + " 64 vectors", triton_kernels.KERNELS[name], wide, dtype))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*triton_kernels.KERNELS, *triton_tiny.KERNELS]
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--kernels", nargs="+", default=every, choices=every)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--accuracy", nargs="+", default=["ieee"], choices=["ieee", "tf32x3", "tf32"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"Triton {triton.__version__}, sm_{args.arch}, kinds {native.KINDS}")
    rows = []
    for mode in args.accuracy:
        accuracy.set(mode)
        for label, kernel, constants, dtype in cases(
            args.quick, args.kernels, [getattr(torch, n) for n in args.dtypes]
        ):
            products = constants.get("KIND") == 0 and constants.get("D") == 0
            if mode != "ieee" and not (products and dtype == torch.float32):
                continue  # no other than in "ieee"
            row: dict[str, Any] = {"kernel": label, "dtype": str(dtype)[6:], "accuracy": mode}
            row["warps"] = constants.get("num_warps", 4)
            try:
                row |= resources(kernel, dict(constants), dtype, args.arch)
                text = f"{row['registers']:4} registers, {row['spill_stores']:5} B spilled, {row['shared']:7} B shared"
            except Exception as error:  # one that does not compile is told of
                row["failed"] = text = f"{type(error).__name__}: {str(error)[:300]}"
            rows.append(row)
            print(f"{label:40} {row['dtype']:8} {mode:6} {row['warps']} warps: {text}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"times": OWED} | (json.loads(args.json.read_text()) if args.json.exists() else {})
        quick = {"quick": args.quick, "triton": triton.__version__, "arch": f"sm_{args.arch}", "rows": rows}
        args.json.write_text(json.dumps(report | {"resources": quick}, indent=1) + "\n")


if __name__ == "__main__":
    main()
