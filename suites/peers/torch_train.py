#!/usr/bin/env python3
"""Training steps of a GPT-2 in PyTorch, on the CPU or a GPU, timed: what bench_train_step is held against.

The same model as the presets (pre-norm, learned positions, tanh GELU, head tied to the embedding, no dropout)
over a vocabulary of bytes, random tokens, AdamW. Prints one line of JSON: tokens/s of every round.
"""
import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, dim, heads, ffn):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, ffn), nn.Linear(ffn, dim)

    def attend(self, x, mask):
        B, T, D = x.shape
        q, k, v = (t.view(B, T, self.heads, -1).transpose(1, 2) for t in self.qkv(x).split(D, dim=2))
        if hasattr(F, "scaled_dot_product_attention"):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5)
            out = scores.masked_fill(mask, float("-inf")).softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(B, T, D))

    def forward(self, x, mask):
        x = x + self.attend(self.norm1(x), mask)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(o.vocab, o.dim), nn.Embedding(o.seq, o.dim)
        self.blocks = nn.ModuleList(Block(o.dim, o.heads, o.ffn) for _ in range(o.layers))
        self.norm = nn.LayerNorm(o.dim)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets, mask):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        logits = self.norm(x) @ self.wte.weight.t()
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1))


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in dict(dim=256, layers=6, heads=8, ffn=1024, vocab=256, batch=8, seq=256, threads=2,
                            rounds=3, steps=3).items():
        a.add_argument("--" + name, type=int, default=value)
    a.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16: autocast, f32 weights")
    a.add_argument("--device", default="cpu")
    a.add_argument("--compile", action="store_true")
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(1)
    model = Gpt(o).to(o.device)
    # One kernel for the update, where the device has one (PyTorch 2).
    best = {} if o.device == "cpu" else {"fused": True}
    update = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, **best)
    mask = torch.ones(o.seq, o.seq, dtype=torch.bool, device=o.device).triu(1)
    tokens = torch.randint(o.vocab, (o.batch, o.seq + 1), device=o.device)
    run = torch.compile(model) if o.compile else model

    def step():
        update.zero_grad(set_to_none=True)
        with torch.autocast(o.device.split(":")[0], torch.bfloat16, enabled=o.dtype == "bf16"):
            loss = run(tokens[:, :-1], tokens[:, 1:], mask)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        return loss

    def wait():
        if o.device != "cpu":
            torch.cuda.synchronize()

    rates = []
    loss = step()
    for _ in range(o.rounds):
        step()
        wait()
        start = time.perf_counter()
        for _ in range(o.steps):
            loss = step()
        wait()
        rates.append(o.steps * o.batch * o.seq / (time.perf_counter() - start))
    print(json.dumps({"peer": "torch " + torch.__version__, "dtype": o.dtype, "device": o.device,
                      "threads": o.threads, "loss": float(loss), "tokens_per_s": rates}))


if __name__ == "__main__":
    main()
