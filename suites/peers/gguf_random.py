#!/usr/bin/env python3
"""Writes a LLaMA of random weights as GGUF, for llama.cpp's own benchmark: what bench_decode is held against.

Wants llama.cpp's `gguf` package (--gguf names its folder). The tokenizer is left out ("no_vocab").
"""
import argparse
import sys

import numpy as np


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("out")
    a.add_argument("--gguf", help="folder of the gguf package, where it is not installed")
    for name, value in dict(dim=4096, layers=4, heads=32, kv_heads=32, ffn=11008, vocab=32000, context=512).items():
        a.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    a.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    o = a.parse_args()
    if o.gguf:
        sys.path.insert(0, o.gguf)
    import gguf

    w = gguf.GGUFWriter(o.out, "llama")
    w.add_context_length(o.context)
    w.add_embedding_length(o.dim)
    w.add_block_count(o.layers)
    w.add_feed_forward_length(o.ffn)
    w.add_head_count(o.heads)
    w.add_head_count_kv(o.kv_heads)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_dimension_count(o.dim // o.heads)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(o.vocab)
    w.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(1)

    def matrix(name, rows, cols):
        x = rng.standard_normal((rows, cols), dtype=np.float32) * np.float32(0.02)
        if o.dtype == "f32":
            w.add_tensor(name, x)
            return
        bits = (x.view(np.uint32) >> 16).astype(np.uint16)  # truncated: the values do not matter
        w.add_tensor(name, bits.view(np.uint8).reshape(rows, 2 * cols), raw_dtype=gguf.GGMLQuantizationType.BF16)

    matrix("token_embd.weight", o.vocab, o.dim)
    kv = o.dim // o.heads * o.kv_heads
    for i in range(o.layers):
        at = f"blk.{i}."
        w.add_tensor(at + "attn_norm.weight", np.ones(o.dim, np.float32))
        w.add_tensor(at + "ffn_norm.weight", np.ones(o.dim, np.float32))
        matrix(at + "attn_q.weight", o.dim, o.dim)
        matrix(at + "attn_k.weight", kv, o.dim)
        matrix(at + "attn_v.weight", kv, o.dim)
        matrix(at + "attn_output.weight", o.dim, o.dim)
        matrix(at + "ffn_gate.weight", o.ffn, o.dim)
        matrix(at + "ffn_up.weight", o.ffn, o.dim)
        matrix(at + "ffn_down.weight", o.dim, o.ffn)
    w.add_tensor("output_norm.weight", np.ones(o.dim, np.float32))
    matrix("output.weight", o.vocab, o.dim)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
