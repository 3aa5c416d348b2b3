# SPDX-License-Identifier: MIT
"""The worker of finetune_step.py: takes the steps of a trace in PyTorch and prints what they gave and took.

usage: finetune_torch.py FORM TRACE BASE THREADS STEPS
"""
import json
import math
import pathlib
import struct
import sys
import time

import torch
from torch.nn import functional as F

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Those that read the same input.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


class Base:
    """A llama2.c checkpoint with a tied head; frozen."""

    def __init__(self, path):
        raw = pathlib.Path(path).read_bytes()
        d, h, layers, self.heads, kv_heads, vocab, _ = struct.unpack("7i", raw[:28])
        if vocab < 0 or kv_heads != self.heads:
            raise SystemExit(f"{path}: got a head of its own or grouped queries, wanted neither")
        flat = torch.frombuffer(bytearray(raw[28:]), dtype=torch.float32)
        at = 0

        def take(*shape):
            nonlocal at
            begin, at = at, at + math.prod(shape)
            return flat[begin:at].view(shape).clone()

        self.dim, self.layers = d, layers
        self.embed, self.norm_att = take(vocab, d), take(layers, d)
        self.weights = {name: take(layers, d, d) for name in PROJECTIONS[:4]}
        self.norm_ffn = take(layers, d)
        for name, shape in (("gate_proj", (h, d)), ("down_proj", (d, h)), ("up_proj", (h, d))):
            self.weights[name] = take(layers, *shape)
        self.norm_out = take(d)


class Adapters:
    """What both forms have in common: where a module's matrices lie in the trace's theta."""

    def __init__(self, trace, theta):
        settings = trace["settings"]
        self.rank, (self.experts,) = settings["rank"], settings["experts"]
        self.scale = settings["alpha"] / self.rank
        self.initial = {}
        rows = {"lora_A": self.experts * self.rank, "lora_B": self.experts * self.rank, "router": self.experts}
        for t in trace["tensors"]:
            _, _, layer, _, name, field = t["name"].split(".")
            values = theta[t["offset"]:t["offset"] + t["size"]]
            self.initial[int(layer), name, field] = values.view(rows[field], -1)


class Loop(Adapters):
    """As people run it: a parameter per matrix, a loop over the experts (LoRAMoE's `lora.py`)."""

    def __init__(self, trace, theta, base):
        super().__init__(trace, theta)
        self.base, self.modules, self.parameters = base, {}, []
        for (layer, name, field), values in self.initial.items():
            module = self.modules.setdefault((layer, name), {})
            if field == "lora_B":
                module[field] = [b.t().clone().requires_grad_() for b in values.split(self.rank)]
                self.parameters += module[field]
            elif field == "lora_A":
                module[field] = [a.clone().requires_grad_() for a in values.split(self.rank)]
                self.parameters += module[field]
            else:
                module[field] = values.clone().requires_grad_()
                self.parameters.append(module[field])
        self.adamw = torch.optim.AdamW(self.parameters, betas=(0.9, 0.95), weight_decay=0)

    def linears(self, layer, names, x):
        results = []
        for name in names:
            module = self.modules[layer, name]
            y = F.linear(x, self.base.weights[name][layer])
            route = torch.softmax(F.linear(x, module["router"]), dim=-1)
            for e in range(self.experts):
                delta = F.linear(F.linear(x, module["lora_A"][e]), module["lora_B"][e])
                y = y + delta * self.scale * route[:, e:e + 1]
            results.append(y)
        return results

    def step(self, rate):
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return norm.item()


class Concat(Adapters):
    """The best form that we know: one product for the A and routers of all that read the same input, one for
    each B with the gates on its input, and all parameters in one flat tensor, as are their gradients."""

    def __init__(self, trace, theta, base):
        super().__init__(trace, theta)
        self.base, self.down, self.up, self.weights = base, {}, {}, {}
        pieces = []
        for layer in range(base.layers):
            for names in GROUPS:
                for field in ("lora_A", "router"):
                    pieces += [self.initial[layer, name, field] for name in names]
                pieces += [self.initial[layer, name, "lora_B"] for name in names]
                for name in names:
                    self.weights[layer, name] = base.weights[name][layer].t().contiguous().t()
        self.flat = torch.cat([p.reshape(-1) for p in pieces])
        self.flat.grad = torch.zeros_like(self.flat)
        self.spread = torch.eye(self.experts).repeat_interleave(self.rank, 1) * self.scale  # gates to ranks
        at, ranks = 0, self.experts * self.rank

        def take(rows, cols):
            nonlocal at
            begin, at = at, at + rows * cols
            part = self.flat[begin:at].view(rows, cols).requires_grad_()
            part.grad = self.flat.grad[begin:at].view(rows, cols)
            return part

        for layer in range(base.layers):
            for names in GROUPS:
                width = self.initial[layer, names[0], "lora_A"].shape[1]
                self.down[layer, names] = take(len(names) * (ranks + self.experts), width)
                for name in names:
                    self.up[layer, name] = take(ranks, self.initial[layer, name, "lora_B"].shape[1])
        self.adamw = torch.optim.AdamW([self.flat], betas=(0.9, 0.95), weight_decay=0)

    def linears(self, layer, names, x):
        n, ranks = len(names), self.experts * self.rank
        h, z = F.linear(x, self.down[layer, names]).split((n * ranks, n * self.experts), dim=1)
        z = z.reshape(-1, n, self.experts)
        # By hand: torch.softmax over ten numbers takes eight times as long.
        e = torch.exp(z - z.detach().amax(-1, keepdim=True))
        p = e / e.sum(-1, keepdim=True)
        h = h.reshape(-1, n, ranks) * (p @ self.spread)
        return [torch.addmm(F.linear(x, self.weights[layer, name]), h[:, i], self.up[layer, name])
                for i, name in enumerate(names)]

    def step(self, rate):
        norm = self.flat.grad.norm().item()
        if norm > 1:
            self.flat.grad.mul_(1 / norm)
        self.adamw.param_groups[0]["lr"] = rate
        self.adamw.step()
        self.flat.grad.zero_()
        return norm


class RmsNorm(torch.autograd.Function):
    """x r w, r = 1 / sqrt(mean(x^2) + 1e-5); by itself a fourth of the time of its operations in a row."""

    @staticmethod
    def forward(ctx, x, w):
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(1e-5).rsqrt_()
        xr = x * r
        ctx.save_for_backward(xr, r, w)
        return xr * w

    @staticmethod
    def backward(ctx, dy):
        xr, r, w = ctx.saved_tensors
        dyw = dy * w
        return (dyw - xr * (dyw * xr).mean(-1, keepdim=True)).mul_(r), None


rms_norm = RmsNorm.apply


def loss_of(base, adapters, inputs, targets, turn, mask):
    """Mean negative log likelihood of targets [rows, context]."""
    rows, context = inputs.shape
    heads, width = base.heads, base.dim // base.heads

    def by_head(x):
        return x.reshape(rows, context, heads, width).transpose(1, 2).reshape(rows * heads, context, width)

    def turned(x, turn):
        pairs = torch.view_as_complex(x.view(rows, context, heads, width // 2, 2)) * turn
        return by_head(torch.view_as_real(pairs))

    x = F.embedding(inputs.view(-1), base.embed)
    for layer in range(base.layers):
        q, k, v = adapters.linears(layer, GROUPS[0], rms_norm(x, base.norm_att[layer]))
        scores = torch.baddbmm(mask, turned(q, turn * width ** -0.5), turned(k, turn).transpose(1, 2))
        att = torch.bmm(torch.softmax(scores, dim=-1), by_head(v)).view(rows, heads, context, width)
        (o,) = adapters.linears(layer, GROUPS[1], att.transpose(1, 2).reshape(-1, base.dim))
        x = x + o
        gate, up = adapters.linears(layer, GROUPS[2], rms_norm(x, base.norm_ffn[layer]))
        (down,) = adapters.linears(layer, GROUPS[3], F.silu(gate) * up)
        x = x + down
    return F.cross_entropy(F.linear(rms_norm(x, base.norm_out), base.embed), targets.view(-1))


def main():
    form, folder, path, threads, steps = sys.argv[1:]
    torch.set_num_threads(int(threads))
    folder = pathlib.Path(folder)
    trace = json.loads((folder / "trace.json").read_text())
    settings = trace["settings"]
    rows, context = settings["rows"], settings["context"]
    if settings["method"] != "molora" or settings["dropout"] != 0 or len(settings["experts"]) != 1:
        raise SystemExit("wanted a trace of molora without dropout, as many experts in every layer")
    theta = torch.frombuffer(bytearray((folder / "theta.f32").read_bytes()), dtype=torch.float32)
    tokens = torch.frombuffer(bytearray((folder / "tokens.i32").read_bytes()), dtype=torch.int32).long()
    tokens = tokens.view(-1, 2, rows, context)

    base = Base(path)
    adapters = {"loop": Loop, "concat": Concat}[form](trace, theta, base)
    width = base.dim // base.heads
    angles = torch.outer(torch.arange(context).float(), 10000.0 ** (-torch.arange(0, width, 2).float() / width))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]
    mask = torch.full((context, context), -math.inf).triu(1)

    result = {"losses": [], "gradient_norms": [], "seconds": [], "torch": torch.__version__}
    for step in range(int(steps)):
        begin = time.perf_counter()
        loss = loss_of(base, adapters, tokens[step, 0], tokens[step, 1], turn, mask)
        loss.backward()
        result["losses"].append(loss.item())
        result["gradient_norms"].append(adapters.step(trace["learning_rates"][step]))
        result["seconds"].append(time.perf_counter() - begin)
    print(json.dumps(result))


main()
