#!/usr/bin/env python3
"""One FFN in PyTorch, in bf16, at the shapes of the kernel suite: dense, and with the rows of the open experts
gathered by index_select. Prints JSON: medians of CUDA events in microseconds, and the ratio dense / gathered.

What is timed is the layer's arithmetic alone, with the L2 cache as the last call left it, or overwritten before each
call ("cold"); copies of the weights are walked over as in suites/ffn_kernel.cpp. The index is given: no router.
"""
import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F

# name, D, F, neurons of an expert, gated
SHAPES = [("gpt2-medium", 1024, 4096, 32, False), ("llama2-7b", 4096, 11008, 32, True)]


def dense(x, w, gated):
    up = F.linear(x, w["up"])
    act = F.silu(F.linear(x, w["gate"])) * up if gated else F.gelu(up, approximate="tanh")
    return act @ w["down"]


def gathered(x, w, rows, gated):
    """`rows`: the neurons that any token of x has open; the others are not read."""
    picked = {name: w[name].index_select(0, rows) for name in w}
    return dense(x, picked, gated)


def median_us(call, repetitions, sweep):
    """Median over event pairs; `sweep` is written before each call where it is given."""
    for _ in range(5):
        call(0)
    pairs = []
    for i in range(repetitions):
        if sweep is not None:
            sweep.zero_()
        torch.cuda._sleep(200_000)  # the device waits until the call is enqueued, so that launches do not count
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call(i)
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(1e3 * a.elapsed_time(b) for a, b in pairs)


def measure(device, shape, tokens, density, repetitions, smoke):
    name, width, neurons, group, gated = shape
    if smoke:
        width, neurons = 64, 256
    kind = {"device": device, "dtype": torch.float32 if smoke else torch.bfloat16}
    copies = 1 if smoke else max(1, min(8, int(512e6 / (2 * (3 if gated else 2) * width * neurons))))
    generator = torch.Generator(device=device).manual_seed(1)
    layers = [{part: 0.02 * torch.randn(neurons, width, generator=generator, **kind)
               for part in (["up", "gate", "down"] if gated else ["up", "down"])} for _ in range(copies)]
    x = torch.randn(tokens, width, generator=generator, **kind)
    experts = neurons // group
    # Each token opens its own experts; what is read is their union.
    open_experts = torch.zeros(experts, dtype=torch.bool)
    for token in range(tokens):
        order = torch.randperm(experts, generator=torch.Generator().manual_seed(token))
        open_experts[order[:max(1, round(density * experts))]] = True
    rows = (open_experts.nonzero() * group + torch.arange(group)).flatten().to(device)

    # All neurons by index are the dense layer: a check before the clock.
    every = torch.arange(neurons, device=device)
    torch.testing.assert_close(gathered(x, layers[0], every, gated), dense(x, layers[0], gated))
    row = {"shape": name, "tokens": tokens, "density": density,
           "loaded": rows.numel() / neurons, "dtype": str(kind["dtype"]).removeprefix("torch.")}
    if smoke:
        return row | {"checked": True}
    sweep = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    for cache, where in (("warm", None), ("cold", sweep)):
        d = median_us(lambda i: dense(x, layers[i % copies], gated), repetitions, where)
        g = median_us(lambda i: gathered(x, layers[i % copies], rows, gated), repetitions, where)
        row |= {f"dense_us_{cache}": round(d, 2), f"gathered_us_{cache}": round(g, 2),
                f"ratio_{cache}": round(d / g, 3)}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=51)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU, checks alone, no time")
    args = parser.parse_args()
    if not args.smoke and not torch.cuda.is_available():
        sys.exit("torch_ffn.py: PyTorch sees no GPU")
    device = "cpu" if args.smoke else "cuda"
    with torch.inference_mode():
        rows = [measure(device, shape, tokens, density, args.repetitions, args.smoke)
                for shape in SHAPES for tokens in (1, 4, 16, 64) for density in (1, 0.5, 0.25, 0.1, 0.05)]
    about = {"torch": torch.__version__, "device": "cpu" if args.smoke else torch.cuda.get_device_name()}
    print(json.dumps(about | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
