#!/usr/bin/env python3
"""Times other programs beside ours, in turn, on this machine: PyTorch in training, llama.cpp in decoding.

    suites/peers/peers.py --out results/raw/2026-11-26-peers.json
    suites/peers/peers.py --llama-bench PATH --gguf FOLDER     llama.cpp's benchmark and its gguf package

Needs a Python with torch, and a BLAS worthy of it (Debian: python3-torch libopenblas0-openmp; with the reference BLAS its
f32 products take 30 times as long, and the result file names the BLAS); llama.cpp is left out where --llama-bench names none. OpenBLAS
chooses its kernels itself: variables OPENBLAS_* are taken out, which on some machines ask for those of an old processor. Every round
runs each program once, in an order that turns around; the figures are medians, ratios are medians of rounds.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TRAIN = dict(dim=256, layers=6, heads=8, ffn=1024, batch=8, seq=256)  # the preset gpt2-mini
DECODE = dict(dim=4096, layers=4, heads=32, ffn=11008)                # llama2-7b:layers=4
CONTEXT = 128


def output_of(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"peers: {command[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    return done.stdout


def ours(o, backend, *flags):
    found = json.loads(output_of([o.lte, "bench-step", "--json", "--threads", o.threads, "--rounds", 3,
                                  "--compare", backend, *flags]))
    return found["rows"][0]["tokens_per_s"]


def train_ours(o, backend):
    return ours(o, backend, "--model", "gpt2-mini", "--batch", TRAIN["batch"], "--seq", TRAIN["seq"])


def train_torch(o, dtype):
    shape = [x for k, v in TRAIN.items() for x in ("--" + k, v)]
    command = [o.python, os.path.join(HERE, "torch_train.py"), *shape, "--threads", o.threads, "--dtype", dtype]
    return statistics.median(json.loads(output_of(command))["tokens_per_s"])


def decode_ours(o, dtype, active):
    flags = ["--decode", "--model", "llama2-7b:layers=4", "--vocab", 32000, "--batch", 1, "--seq", CONTEXT, "--steps", 8]
    if active < 1:
        flags += ["--group", 32, "--active", active]
    if dtype == "bf16":
        flags.append("--bf16")
    return ours(o, "cpu+onednn+simd+fused", *flags)


def decode_llama(o, dtype, folder):
    path = os.path.join(folder, dtype + ".gguf")
    if not os.path.exists(path):
        shape = [x for k, v in DECODE.items() for x in ("--" + k, v)]
        output_of([o.python, os.path.join(HERE, "gguf_random.py"), path, *shape, "--kv-heads", 32, "--dtype", dtype,
                   *(["--gguf", o.gguf] if o.gguf else [])])
    found = json.loads(output_of([o.llama_bench, "-m", path, "-p", 0, "-n", 32, "-d", CONTEXT - 32, "-t", o.threads,
                                  "-r", 3, "-o", "json"]))
    return statistics.median(found[0]["samples_ts"])


def blas():
    return os.path.basename(os.path.dirname(os.path.realpath("/usr/lib/x86_64-linux-gnu/libblas.so.3")))


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--lte", default="build/release/lte")
    a.add_argument("--python", default=sys.executable, help="one that has torch (and numpy, for llama.cpp)")
    a.add_argument("--llama-bench", help="llama.cpp's llama-bench")
    a.add_argument("--gguf", help="folder of llama.cpp's gguf package, where it is not installed")
    a.add_argument("--threads", type=int, default=os.cpu_count())
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--only", choices=["training", "decoding"])
    a.add_argument("--out", help="file for every figure, as JSON")
    o = a.parse_args()
    for name in [n for n in os.environ if n.startswith("OPENBLAS_")]:
        del os.environ[name]
    groups = [
        ("training gpt2-mini, f32", [("lte", lambda: train_ours(o, "cpu+onednn+fused")),
                                     ("torch", lambda: train_torch(o, "f32"))]),
        ("training gpt2-mini, bf16 products", [("lte", lambda: train_ours(o, "cpu+onednn+fused+bf16")),
                                               ("torch", lambda: train_torch(o, "bf16"))]),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ["bf16", "f32"] if o.llama_bench else []:
            groups.append((f"decoding llama2-7b:layers=4, {dtype}",
                           [("lte, dense", lambda d=dtype: decode_ours(o, d, 1)),
                            ("lte, half of the FFN", lambda d=dtype: decode_ours(o, d, 0.5)),
                            ("lte, a quarter of the FFN", lambda d=dtype: decode_ours(o, d, 0.25)),
                            ("llama.cpp", lambda d=dtype: decode_llama(o, d, folder))]))
        for what, programs in groups:
            if o.only and not what.startswith(o.only):
                continue
            rates = {name: [] for name, _ in programs}
            for turn in range(o.rounds):
                for name, run in programs if turn % 2 == 0 else programs[::-1]:
                    rates[name].append(run())
            peer = programs[-1][0]
            for name, each in rates.items():
                ratio = statistics.median(x / y for x, y in zip(each, rates[peer]))
                rows.append(dict(what=what, program=name, tokens_per_s=each, x_peer=ratio))
                print(f"{what:36} {name:26} {statistics.median(each):10.1f} tokens/s   {ratio:6.2f} x {peer}", flush=True)
    if o.out:
        machine = json.loads(output_of([o.lte, "info", "--json"]))["machine"]
        torch = output_of([o.python, "-c", "import torch; print(torch.__version__)"]).strip()
        with open(o.out, "w") as f:
            json.dump(dict(machine=machine, torch=torch, blas=blas(),
                           threads=o.threads, rows=rows), f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
