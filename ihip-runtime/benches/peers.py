"""Times dense attention of PyTorch on the shapes of `ihip bench attention`, for its `--peers`.

    python3 peers.py [--context 131072,1048576] [--rows 32768] [--samples 50] > peers.json
    ihip bench attention --suite headline --peers peers.json --json attention.json

One layer: 32 query heads, 8 key-value heads, dimension 128, bf16, random data, medians with a cold L2, decoding as a
captured graph. Of flash attention and cuDNN, and of one call or two where rows follow others, the fastest is kept.
"""

import argparse
import json
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

QUERY_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
# Several times the L2 of any GPU.
COLD_BYTES = 512 << 20


def sample(run, cold):
    """Microseconds of one run after everything has left the L2."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cold.max()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3


def samples(run, count, cold):
    run()
    return [sample(run, cold) for _ in range(count)]


def recorded(run):
    """What replays `run` as a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def quantile(values, share):
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def measure(phase, context, rows, count, cold):
    """The fastest way's row."""
    generator = torch.Generator("cuda").manual_seed(0)

    def noise(heads, tokens):
        return torch.randn(1, heads, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16, generator=generator)

    query, key, value = noise(QUERY_HEADS, rows), noise(KV_HEADS, context), noise(KV_HEADS, context)
    mask = None if rows == 1 else causal_lower_right(rows, context)
    # A square mask is what cuDNN knows as causal.
    causal, earlier = rows == context, context - rows
    ways = {(name, False): backend for name, backend in BACKENDS.items()}
    if rows > 1 and earlier > 0:
        # Every row sees the keys before the first row: a rectangle without a mask, and a square. What joins the two outputs is
        # left out, in favour of this way.
        ways |= {(f"{name}, rectangle and square", True): backend for name, backend in BACKENDS.items()}
    best = None
    for (name, in_two), backend in ways.items():
        def attend(first, end, **mask):
            scaled_dot_product_attention(query, key[:, :, first:end], value[:, :, first:end], enable_gqa=True, **mask)

        def run():
            with sdpa_kernel(backend):
                if in_two:
                    attend(0, earlier)
                    attend(earlier, context, is_causal=True)
                else:
                    attend(0, context, attn_mask=None if causal else mask, is_causal=causal)
        try:
            times = samples(recorded(run) if rows == 1 else run, count, cold)
        except RuntimeError as error:
            print(f"{phase} at {context}, {name}: {error}", file=sys.stderr)
            continue
        print(f"{phase} at {context}, {name}: {quantile(times, 0.5):.1f} us", file=sys.stderr)
        if best is None or quantile(times, 0.5) < quantile(best, 0.5):
            best = times
    if best is None:
        return []
    keys = sum(range(context - rows + 1, context + 1))
    return [{
        "phase": phase, "context": context, "refresh": "none", "pipeline": "dense", "method": "dense",
        "median_us": quantile(best, 0.5), "p5_us": quantile(best, 0.05), "p95_us": quantile(best, 0.95),
        "bytes": 4.0 * KV_HEADS * HEAD_DIM * context, "operations": 4.0 * QUERY_HEADS * HEAD_DIM * keys,
        "samples": [round(time, 3) for time in best],
    }]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser.add_argument("--context", type=numbers, default=[32 << 10, 128 << 10, 1 << 20])
    parser.add_argument("--rows", type=int, default=32 << 10)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--phase", type=lambda text: text.split(","), default=["decode", "prefill"])
    options = parser.parse_args()
    cold = torch.zeros(COLD_BYTES // 4, dtype=torch.int32, device="cuda")
    found = []
    for context in options.context:
        if "decode" in options.phase:
            found += measure("decode", context, 1, options.samples, cold)
        if "prefill" in options.phase:
            found += measure("prefill", context, min(options.rows, context), max(options.samples // 10, 3), cold)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
