# SPDX-License-Identifier: MIT
"""The fine-tuning step of examples/finetune against the same step in PyTorch, in tokens a second.

usage: finetune_step.py [--finetune PROGRAM] [--verify] [--threads N] [--rounds N] [--steps N] [--json FILE]

Both take the same steps: the base, the adapters' initial weights, the batches and the learning rates are those
that `finetune --trace` writes. First the losses and the norms of the gradients of the first steps are compared;
then both run by turns, each in a process of its own, and the table shows medians over the rounds. PyTorch runs
in two forms (finetune_torch.py): `concat`, the fastest that we know, and `loop`, a Python loop over the experts,
which is what people run. Its environment is the fastest of those that `settings` lists, measured on the spot.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FORMS = ("concat", "loop")
WARM_UP = 2  # steps that are not counted: they touch every buffer for the first time
# Measured 5e-7 and 9e-6. AdamW with beta2 0.96 in place of 0.95 is 3e-4 and 8e-3 apart, an RMS norm whose mean divides
# by 64.01 5e-5 and 2e-3.
LOSS_GATE, NORM_GATE = 2e-5, 2e-4


def run(command, environment):
    done = subprocess.run([str(word) for word in command], env={**os.environ, **environment}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


class Job:
    """The work, and how either side does it."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.load = os.getloadavg()[0]

    def ours(self, steps):
        # Short spins, as cmake/finetune.sh sets them.
        run([self.options.finetune, "--no-report", "--seed", 0, "--steps", steps, "--base", self.options.base,
             "--threads", self.options.threads, "--trace", self.folder], {"GOMP_SPINCOUNT": "10000"})
        return json.loads((self.folder / "trace.json").read_text())

    def theirs(self, form, steps, environment):
        return json.loads(run([sys.executable, HERE / "finetune_torch.py", form, self.folder, self.options.base,
                               self.options.threads, steps], environment))


def seconds(result):
    return statistics.median(result["seconds"][WARM_UP:])


def verify(job, environment, steps=6):
    """Whether both forms compute what finetune computes; prints how well."""
    ours, good = job.ours(steps), True
    for form in FORMS:
        theirs = job.theirs(form, steps, environment)
        worst = {}
        for what, gate in (("losses", LOSS_GATE), ("gradient_norms", NORM_GATE)):
            if len(ours[what]) != steps or len(theirs[what]) != steps:
                raise SystemExit(f"{form}: {len(theirs[what])} {what}, wanted {steps}")
            worst[what] = max(abs(a / b - 1) for a, b in zip(theirs[what], ours[what]))
            good = good and worst[what] <= gate  # NaN is not
        print(f"{form}: losses of {steps} steps {worst['losses']:.1e} apart, "
              f"gradient norms {worst['gradient_norms']:.1e}")
    moved = max(abs(loss / ours["losses"][0] - 1) for loss in ours["losses"])
    if moved < 100 * LOSS_GATE:
        raise SystemExit("the losses hardly move: nothing was compared")
    return good


def settings(threads):
    """Environments of PyTorch, one list for each choice: the kernels of OpenBLAS, whose guess cannot be relied
    on, and who has threads."""
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    # glibc is told to keep freed memory: else every large temporary is a series of page faults.
    common = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**30),
              "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**27)}
    if " avx512f " in flags:
        common["ATEN_CPU_CAPABILITY"] = "avx512"
        cores = ("SKYLAKEX", "COOPERLAKE", "HASWELL")
    else:
        cores = ("HASWELL", "ZEN") if " avx2 " in flags else ()
    yield [{**common, "OPENBLAS_CORETYPE": core} for core in cores] or [common]
    if threads > 1:
        yield [{"OPENBLAS_NUM_THREADS": str(blas), **spin} for blas in (1, threads)
               for spin in ({}, {"GOMP_SPINCOUNT": "10000"})]


def best_environment(job, threads):
    best, steps = {}, job.options.steps
    for choices in settings(threads):
        timed = [(min(seconds(job.theirs("concat", steps, {**best, **choice})) for _ in range(2)), i)
                 for i, choice in enumerate(choices)]
        best = {**best, **choices[min(timed)[1]]}
    return best


def processor():
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def measure(job, environment):
    options = job.options
    sides = {"moxie": lambda: job.ours(options.steps)}
    for form in FORMS:
        sides[form] = lambda form=form: job.theirs(form, options.steps, environment)
    times = {name: [] for name in sides}
    versions = {"moxie": run([options.finetune, "--version"], {}).strip()}
    tokens = 0
    for turn in range(options.rounds):
        # Who comes first changes, so that a machine that gets slower or faster favours nobody.
        for name in sorted(sides, reverse=turn % 2 == 1):
            result = sides[name]()
            times[name].append(seconds(result))
            versions["torch"] = result.get("torch", versions.get("torch"))
            if name == "moxie":
                tokens = result["settings"]["rows"] * result["settings"]["context"]
    rows = {}
    for name in sides:
        ratios = [theirs / ours for theirs, ours in zip(times[name], times["moxie"])]
        rows[name] = {"tokens_per_second": tokens / statistics.median(times[name]),
                      "ratio": statistics.median(ratios), "ratios": ratios}
    return {"op": "finetune_step", "threads": options.threads, "rounds": options.rounds, "tokens": tokens,
            "steps": options.steps - WARM_UP, "processor": processor(), "versions": versions,
            "load": job.load, "environment": environment, "sides": rows}


def table(found):
    names = {"moxie": f"moxie {found['versions']['moxie']}"}
    for form in FORMS:
        names[form] = f"PyTorch {found['versions']['torch']}, {form}"
    lines = [f"{'step of ' + str(found['tokens']) + ' tokens':30}  tokens/s  ours is faster by  (rounds)", "-" * 72]
    for name, side in found["sides"].items():
        line = f"{names[name]:30}  {side['tokens_per_second']:8.0f}"
        if name != "moxie":
            line += f"  {side['ratio']:16.2f}x  ({min(side['ratios']):.2f} to {max(side['ratios']):.2f})"
        lines.append(line)
    how = ", ".join(f"{key}={value}" for key, value in found["environment"].items())
    lines += ["-" * 72, f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}, medians of "
              f"{found['rounds']} rounds of {found['steps']} steps; {found['processor']}", f"PyTorch under {how}"]
    if found["load"] > 0.5:
        lines.append(f"The machine was busy: load {found['load']:.1f} before the run. Trust none of this, least of all "
                     "where threads wait for each other.")
    return "\n".join(lines)


def main():
    built = [ROOT / "build" / preset / "examples" / "finetune" for preset in ("native", "release")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finetune", type=pathlib.Path, default=next((p for p in built if p.exists()), built[0]),
                        help="the built program (default: %(default)s)")
    parser.add_argument("--base", type=pathlib.Path, default=ROOT / "examples" / "llama" / "english-64x4.bin")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=22, help=f"of a round, the first {WARM_UP} not counted")
    parser.add_argument("--verify", action="store_true", help="compare the first steps, time nothing")
    parser.add_argument("--json", type=pathlib.Path, help="append one object to this file")
    options = parser.parse_args()
    if min(options.threads, options.rounds, options.steps - WARM_UP) < 1:
        parser.error(f"wanted at least 1 thread, 1 round and {WARM_UP + 1} steps")
    if importlib.util.find_spec("torch") is None:
        print("SKIPPED: no PyTorch (Debian: python3-torch). All tests passed")
        return 0
    if not options.finetune.exists():
        raise SystemExit(f"{options.finetune}: not there; cmake/finetune.sh builds it")

    with tempfile.TemporaryDirectory() as folder:
        job = Job(options, pathlib.Path(folder))
        if not verify(job, {}):
            print("not the same computation")
            return 1
        if options.verify:
            print("All tests passed")
            return 0
        job.ours(options.steps)  # leaves the trace that PyTorch follows
        found = measure(job, best_environment(job, options.threads))
    print(table(found))
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps(found) + "\n")
    return 0


sys.exit(main())
