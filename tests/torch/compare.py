# SPDX-License-Identifier: MIT
"""Recomputes with PyTorch, in double and with its own gradients, what cases.cpp wrote.

usage: compare.py PROGRAM
"""
import subprocess
import sys

try:
    import torch
except ImportError:
    print("SKIPPED: no PyTorch (Debian: python3-torch). All tests passed")
    sys.exit(0)

UNIT = 2.0**-53


def read(lines):
    cases, case = [], None
    for line in lines:
        words = line.split()
        if words[0] == "case":
            case = {"kind": words[1]}
        elif words[0] == "end":
            cases.append(case)
        else:
            colon = words.index(":")
            shape = [int(w) for w in words[1:colon]]
            values = [float.fromhex(w) for w in words[colon + 1:]]
            case[words[0]] = torch.tensor(values, dtype=torch.float64).reshape(shape)
    return cases


def lora(case, x, gates, theta, scale):
    """sum over e of g_e s B_e A_e x; A [E r, in], B [E r, out], experts one after another."""
    experts = gates.shape[1]
    a = theta["lora_A"].reshape(experts, -1, x.shape[1])
    b = theta["lora_B"].reshape(experts, a.shape[1], -1)
    y = torch.einsum("td,erd->ter", x, a)
    y = torch.einsum("ter,ero->teo", y, b)
    return case["y0"] + scale * torch.einsum("te,teo->to", gates, y)


def top_k(z, k):
    p = torch.softmax(z, dim=1)
    weights, chosen = torch.topk(p, k, dim=1)
    gates = torch.zeros_like(p).scatter(1, chosen, weights / weights.sum(1, keepdim=True))
    return p, gates, chosen


def cv_squared(v):
    return v.var(unbiased=False) / (v.mean() ** 2 + 1e-10)


def forward(case, x, theta):
    """y, the losses by name, all as functions that PyTorch differentiates."""
    kind = case["kind"]
    losses = {}
    if kind == "mov":
        heads, experts, width = theta["ia3_l"].shape
        h = x.reshape(len(x), heads, width)
        z = h @ theta["router"].T
        s = torch.einsum("the,hed->thd", torch.softmax(z, dim=2), theta["ia3_l"])
        losses["z"] = (torch.logsumexp(z, dim=2) ** 2).mean()
        return (h * s).reshape(x.shape), losses
    z = x @ theta["router"].T
    experts = z.shape[1]
    if kind in ("molora", "loramoe"):
        p = gates = torch.softmax(z, dim=1)
        scale = 16 / 3 if kind == "molora" else 32 / 2
    elif kind == "mola":
        p, gates, chosen = top_k(z, 2)
        scale = 16 / 2
        f = torch.nn.functional.one_hot(chosen, experts).sum(dim=(0, 1)).double() / chosen.numel()
        losses["balance"] = experts * (f * p.mean(0)).sum()
    else:
        sigma = torch.nn.functional.softplus(x @ theta["router_noise"].T) + 0.01
        noisy = z + case["epsilon"] * sigma
        values, chosen = torch.topk(noisy, 2, dim=1)
        gates = torch.zeros_like(z).scatter(1, chosen, torch.softmax(values, dim=1))
        p = torch.softmax(noisy, dim=1)
        scale = 1.0
        # The threshold of a chosen expert is the best that is not chosen, of the others the last that is.
        best = torch.topk(noisy, 3, dim=1).values
        is_chosen = torch.zeros_like(z).scatter(1, chosen, 1.0).bool()
        threshold = torch.where(is_chosen, best[:, 2:3], best[:, 1:2])
        normal = torch.distributions.Normal(0.0, 1.0)
        losses["load"] = cv_squared(normal.cdf((z - threshold) / sigma).sum(0))
    losses["z"] = (torch.logsumexp(z, dim=1) ** 2).mean()
    losses["importance"] = cv_squared(gates.sum(0))
    if kind == "loramoe":
        q = torch.stack([p[:5].sum(0), p[5:].sum(0)])
        first = torch.arange(experts) < experts // 2
        matches = torch.stack([first, ~first]).double()
        weighted = (q * (0.9 + 0.2 * matches)).flatten()
        losses["localized"] = weighted.var(unbiased=True) / (weighted.mean() ** 2 + 1e-10)
    return lora(case, x, gates, theta, scale), losses


def main():
    output = subprocess.run([sys.argv[1]], check=True, capture_output=True, text=True).stdout
    cases = read(output.splitlines())
    failures = comparisons = 0
    worst = 0.0
    for case in cases:
        theta = {k[6:]: v.clone().requires_grad_() for k, v in case.items() if k.startswith("theta.")}
        x = case["x"].clone().requires_grad_()
        y, losses = forward(case, x, theta)
        total = (y * case["dy"]).sum()
        pairs = [("y", case["y"], y)]
        for name in ("balance", "localized", "importance", "load", "z"):
            if name in case:
                weight, value = case[name]
                total = total + weight * losses[name]
                pairs.append((name, value, losses[name]))
        total.backward()
        pairs.append(("dx", case["dx"], x.grad))
        pairs += [("dtheta." + k, case["dtheta." + k], v.grad) for k, v in theta.items()]
        for name, got, wanted in pairs:
            wanted = wanted.detach()
            allowed = 64 * UNIT * max(1.0, wanted.abs().max().item())
            apart = (got - wanted).abs().max().item()
            comparisons += 1
            worst = max(worst, apart / allowed)
            if not apart <= allowed or wanted.abs().max().item() == 0:
                failures += 1
                print(f"{case['kind']} {name}: {apart:.3g} apart, allowed {allowed:.3g}")
    print(f"{len(cases)} adapters, {comparisons} comparisons, worst {worst:.3f} of what is allowed")
    if failures or len(cases) != 5 or comparisons < 30:
        print(f"{failures} failed")
        sys.exit(1)
    print("All tests passed")


main()
