# SPDX-License-Identifier: MIT
"""Files of torch.save, as our reader reads them: every number, or the code of the refusal.

usage: bin_files.py PROGRAM
"""
import collections
import io
import os
import random
import subprocess
import sys
import tempfile
import zipfile

try:
    import torch
except ImportError:
    print("SKIPPED: no PyTorch (Debian: python3-torch). All tests passed")
    sys.exit(0)

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
         torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
         torch.bool: "BOOL"}
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


class Layer(torch.nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.router = torch.nn.Linear(6, experts, bias=False)
        self.lora_A = torch.nn.ModuleList(torch.nn.Linear(6, 2, bias=False) for _ in range(experts))
        self.lora_B = torch.nn.ModuleList(torch.nn.Linear(2, 5, bias=False) for _ in range(experts))
        self.norm = torch.nn.BatchNorm1d(5)  # has a version and a counter


def random_view(rng):
    """A view of a storage, with permuted, reversed, skipped and dropped dimensions."""
    shape = [rng.randint(1, 5) for _ in range(rng.randint(1, 4))]
    x = torch.randn(shape, dtype=torch.float64).to(rng.choice(FLOATS))
    if rng.random() < 0.7:
        x = x.permute(rng.sample(range(len(shape)), len(shape)))
    for d in range(x.dim()):
        n = x.shape[d]
        begin = rng.randint(0, n - 1)
        index = [slice(None)] * x.dim()
        index[d] = slice(begin, rng.randint(begin, n), rng.randint(1, 2))
        x = x[tuple(index)]
    if rng.random() < 0.3:
        x = x.unsqueeze(rng.randint(0, x.dim()))
    return x


def accepted():
    rng = random.Random(1)
    torch.manual_seed(1)
    base = torch.arange(24.0)
    one = torch.randn(3, 4)
    script = collections.OrderedDict((f"layers.{i}.lora_A_{e}.weight", torch.randn(2, 3))
                                     for i in range(300) for e in range(4))
    extreme = torch.tensor([0.0, -0.0, 1e-45, -1.17549435e-38, 3.4028234e38])
    yield "state_dict", torch.nn.ModuleList(Layer(4) for _ in range(40)).state_dict()
    yield "flat", script
    yield "types", {str(t): torch.arange(-3, 4).to(t) if t != torch.uint8 else torch.arange(7).to(t)
                    for t in NAMES}
    yield "parameters", {"p": torch.nn.Parameter(torch.randn(3, 2)), "fixed": torch.nn.Parameter(one.half(), False),
                         "transposed": torch.nn.Parameter(torch.randn(4, 3).bfloat16().t())}
    yield "shapes", {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "none": torch.empty(0),
                     "ones": torch.randn(1, 1, 1, 1), "deep": torch.randn(1, 2, 1, 2, 1, 2, 1, 2)}
    yield "shared", {"all": base, "rows": base.view(4, 6), "columns": base.view(4, 6).t(), "part": base[5:9],
                     "skipped": base[1::3], "again": base, "window": base.as_strided((3, 4), (2, 1), 1)}
    yield "extreme", {"f32": extreme, "f16": torch.tensor([65504.0, 6e-8, -0.0]).half(),
                      "bf16": extreme[:4].bfloat16(),
                      "f64": torch.tensor([5e-324, 1.7976931348623157e308], dtype=torch.float64)}
    yield "names", {"ünïcödé.重み": one, "spaces and 'quotes'": one + 1, "../../etc": one + 2, "x" * 300: one + 3}
    yield "views", {f"view {i}": random_view(rng) for i in range(400)}
    yield "nothing", {}


def refused():
    linear = torch.nn.Linear(3, 2)
    one = torch.ones(2)
    buffer = io.BytesIO()
    torch.jit.script(linear).save("script.pt")
    with open("script.pt", "rb") as file:
        yield "script", "NotTorchFile", file.read()
    torch.save({"t": one}, buffer, _use_new_zipfile_serialization=False)
    yield "old", "NotTorchFile", buffer.getvalue()
    yield "module", "UnsupportedPickle", linear
    yield "checkpoint", "NotStateDict", {"model": linear.state_dict(), "step": 3}
    yield "tensor", "NotStateDict", one
    yield "number", "NotStateDict", {"t": one, "n": 3}
    yield "optimiser", "UnsupportedPickle", torch.optim.Adam(linear.parameters()).state_dict()
    yield "list", "UnsupportedPickle", [one]
    yield "none", "UnsupportedPickle", {"t": None}
    yield "integers", "NotStateDict", {0: one}
    yield "sparse", "UnsupportedPickle", {"t": torch.eye(3).to_sparse()}
    yield "quantised", "UnsupportedPickle", {"t": torch.quantize_per_tensor(one, 0.1, 0, torch.qint8)}
    yield "complex", "UnsupportedPickle", {"t": torch.ones(2, dtype=torch.complex64)}
    yield "numpy", "UnsupportedPickle", {"t": one.numpy()}
    yield "function", "UnsupportedPickle", {"t": os.system}
    yield "expanded", "BadStride", {"t": torch.ones(1).expand(1_000_000)}


def numbers(tensor):
    if tensor.dtype in FLOATS:
        return tensor.double().flatten().tolist()
    return list(tensor.contiguous().numpy().tobytes())


def check_accepted(name, tensors, lines):
    faults = []
    if len(lines) != len(tensors) or any(line.startswith("refused") for line in lines):
        return [f"{name}: {len(lines)} lines for {len(tensors)} tensors: {lines[:1]}"], 0
    compared = 0
    for (key, tensor), line in zip(tensors.items(), lines):
        words = line.split()
        if ":" not in words:
            faults.append(f"{name}: {key} is read as {line[:200]}")
            continue
        colon = words.index(":")
        tensor = tensor.detach()
        base = 16 if tensor.dtype not in FLOATS else None
        values = [int(w, base) if base else float.fromhex(w) for w in words[colon + 1:]]
        wanted = numbers(tensor)
        compared += len(wanted)
        same = [v.hex() for v in values] == [v.hex() for v in wanted] if not base else values == wanted
        if (bytes.fromhex(words[0]).decode() != key or words[1] != NAMES[tensor.dtype]
                or [int(w) for w in words[2:colon]] != list(tensor.shape) or not same):
            faults.append(f"{name}: {key} is read as {line[:200]}")
    return faults, compared


def main():
    program = os.path.abspath(sys.argv[1])
    faults = []
    compared = files = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        cases = []
        for name, tensors in accepted():
            torch.save(tensors, name + ".bin")
            buffer = io.BytesIO()
            torch.save(tensors, buffer)
            with open(name + ".memory.bin", "wb") as file:
                file.write(buffer.getvalue())
            cases += [(name + ".bin", tensors), (name + ".memory.bin", tensors)]
        for name, code, what in refused():
            if isinstance(what, bytes):
                with open(name + ".bin", "wb") as file:
                    file.write(what)
            else:
                torch.save(what, name + ".bin")
            cases.append((name + ".bin", code))
        torch.save({"t": torch.ones(2)}, "protocol4.bin", pickle_protocol=4)
        cases.append(("protocol4.bin", "UnsupportedPickle"))

        output = subprocess.run([program, "read"] + [name for name, _ in cases], check=True, capture_output=True,
                                text=True).stdout
        for (name, wanted), part in zip(cases, ("\n" + output).split("\nfile ")[1:]):
            lines = part.splitlines()[1:]
            files += 1
            if isinstance(wanted, str):
                if len(lines) != 1 or not lines[0].startswith(f"refused {wanted}: "):
                    faults.append(f"{name}: wanted {wanted}, got {lines[:1]}")
                continue
            new_faults, n = check_accepted(name, wanted, lines)
            faults += new_faults
            compared += n

        # The other way round: what our tests make their files of is what torch reads.
        subprocess.run([program, "write", "ours.bin"], check=True)
        ours = torch.load("ours.bin")
        whole = torch.arange(6.0)
        good = (list(ours) == ["a.weight", "a.transposed", "b"] and torch.equal(ours["a.weight"], whole.view(2, 3))
                and torch.equal(ours["a.transposed"], torch.tensor([[1.0, 4.0], [2.0, 5.0]]))
                and torch.equal(ours["b"], torch.tensor([1.0, -2.0]).half()) and ours["b"].requires_grad
                and zipfile.ZipFile("ours.bin").testzip() is None)
        if not good:
            faults.append("torch does not read the file of our own tests as it was meant")
    print(f"{files} files of torch {torch.__version__}, {compared} numbers compared")
    for fault in faults:
        print(fault)
    if faults or files != 37 or compared < 10_000:
        print(f"{len(faults)} failed")
        sys.exit(1)
    print("All tests passed")


main()
