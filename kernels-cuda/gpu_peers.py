"""Peers for `gpu.py`: llama.cpp, whose sources travel and are built on the GPU host, and programs that time products of PyTorch
and of humming."""

import shutil
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

# What the two programs are built from; the other back ends, the tests and the models stay behind.
LLAMA_PARTS = ("CMakeLists.txt", "LICENSE", "cmake", "common", "ggml", "include", "src", "tools", "vendor")
LLAMA_BACKENDS = ("ggml-cpu", "ggml-cuda")
LLAMA_LEFT_OUT = ("tools/ui", "tools/server")
LLAMA_PROGRAMS = ("llama-bench", "llama-batched-bench")
LLAMA_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_CUDA=ON",
    "-DGGML_CUDA_FA_ALL_QUANTS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)

# The peer for weights of 4 bits and activations of 16. It needs what a host with PyTorch and CUDA's headers has.
HUMMING = "humming-kernels==0.1.19"
# The interpreter of the GPU host.
HUMMING_FOR = ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64")


def pack_llama(target: Path) -> None:
    """Writes the sources to an archive."""
    # Only the host that packs needs them.
    sys.path.insert(0, str(SCRIPTS))
    from peers import llama_cpp

    sources = llama_cpp.fetch()

    backends = [path.name for path in (sources / "ggml" / "src").glob("ggml-*") if path.is_dir()]
    others = [f"ggml/src/{name}" for name in sorted(backends) if name not in LLAMA_BACKENDS]
    command = ["tar", "-cJf", target, "-C", sources, *(f"--exclude={name}" for name in (*others, *LLAMA_LEFT_OUT))]
    subprocess.run([*command, *LLAMA_PARTS], check=True)


def pack_humming(target: Path) -> None:
    """Fetches the package, if it is to be had."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", target]
    subprocess.run([*command, *HUMMING_FOR, HUMMING], check=True)


def llama_build(archive: Path, folder: Path, architecture: str, jobs: int) -> str:
    """The shell commands that build llama.cpp's programs from the archive into `folder`/build/bin."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = " ".join((*LLAMA_OPTIONS, f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"))
    return (
        f"set -e; cd '{folder}'; mkdir source; tar -xf '{archive}' -C source; "
        f"cmake -G Ninja -S source -B build {options}; "
        f"cmake --build build --parallel {jobs} --target {' '.join(LLAMA_PROGRAMS)}"
    )


# Shapes of both: ffn_down and ffn_up of an 8B model.
COMMON = """
import json, sys, torch
SHAPES = ((4096, 14336), (14336, 4096))
def median(run, repeats=20):
    for index in range(3): run(index)
    times = []
    for index in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(); run(index); end.record(); torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]
def copies(bytes):
    # As many matrices as the cache does not hold.
    return int(3 * 60e6 / bytes) + 1
rows = []
"""

PYTORCH = (
    COMMON
    + """
for n, k in SHAPES:
    half = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies(n * k * 2))]
    quarter = []
    for _ in range(copies(n * k / 2)):
        packed = torch.randint(0, 255, (n, k // 2), device="cuda", dtype=torch.uint8)
        scales = torch.randn(k // 32, n, 2, device="cuda", dtype=torch.bfloat16)
        quarter.append((torch._convert_weight_to_int4pack(packed, 8), scales))
    for m in (1, 8, 16, 64, 512, 2048, 4096):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        row = {"n": n, "k": k, "m": m}
        row["bf16_s"] = median(lambda i: torch.nn.functional.linear(x, half[i % len(half)]))
        row["int4_s"] = median(lambda i: torch._weight_int4pack_mm(x, quarter[i % len(quarter)][0], 32, quarter[i % len(quarter)][1]))
        rows.append(row)
print(json.dumps(rows))
"""
)

HUMMING_PROGRAM = (
    COMMON
    + """
from humming.layer import HummingLayer
for n, k in SHAPES:
    weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    layers = []
    for _ in range(copies(n * k / 2)):
        config = {"dtype": "int4", "weight_scale_group_size": 128}
        layer = HummingLayer(shape_n=n, shape_k=k, weight_config=config, torch_dtype=torch.bfloat16).cuda()
        layer.load_from_unquantized(weight)
        layer.transform()
        layers.append(layer)
    for m in (1, 8, 16, 64, 512, 2048, 4096):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        rows.append({"n": n, "k": k, "m": m, "int4_s": median(lambda i: layers[i % len(layers)](x))})
# The library may have printed words of its own.
print("\\n" + json.dumps(rows))
"""
)
