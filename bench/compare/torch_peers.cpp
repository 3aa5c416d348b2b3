// SPDX-License-Identifier: MIT
// The one file that includes libtorch.
#include "problem.hpp"

#include <torch/torch.h>

#include <memory>

namespace compare {
namespace {

using at::Tensor;

Tensor view(const Matrix& m) { return at::from_blob(const_cast<float*>(m.data()), {m.rows(), m.cols()}); }
Tensor copy_of(const Matrix& m) { return view(m).clone(); }

/// The weights as a formula wants them, in one list so that autograd can name its leaves: all a, all b, l,
/// router. Each expert by itself with B as torch::nn::Linear stores it, [d, r]; or stacked with B [n, d].
struct Parameters {
  std::vector<Tensor> a, b;
  Tensor l, router;

  Parameters(const Cell& cell, const Weights& w, bool stacked, bool trained) {
    const Index r = cell.rank;
    if (stacked && cell.lora_kind()) {
      a.push_back(copy_of(w.a));
      b.push_back(copy_of(w.b));
    }
    for (Index e = 0; e < cell.experts && !stacked && cell.lora_kind(); ++e) {
      a.push_back(view(w.a).slice(0, e * r, (e + 1) * r).clone());
      b.push_back(view(w.b).slice(0, e * r, (e + 1) * r).t().contiguous());
    }
    if (!cell.lora_kind()) l = copy_of(w.l);
    if (cell.routed()) router = copy_of(w.router);
    if (trained)
      for (Tensor& leaf : leaves()) leaf.requires_grad_(true);
  }
  std::vector<Tensor> leaves() const {
    std::vector<Tensor> all = a;
    all.insert(all.end(), b.begin(), b.end());
    for (const Tensor& t : {l, router})
      if (t.defined()) all.push_back(t);
    return all;
  }
};

/// What a formula sees. y0 is the frozen layer's output, without a gradient of its own.
struct Inputs {
  const Cell& cell;
  double scale;
  Tensor x, y0;
};
using Formula = std::function<Tensor(const Inputs&, const Parameters&)>;

/// A formula as people run it: fresh tensors, gradients by autograd.
struct Run {
  Problem& problem;
  Formula formula;
  bool stacked;
  std::vector<Parameters> copies;
  Tensor x, y0, dy, y;
  std::vector<Tensor> gradients;

  Run(Problem& p, Formula f, bool stack) : problem(p), formula(std::move(f)), stacked(stack) {
    for (Index i = 0; i < p.copies; ++i) copies.emplace_back(p.cell, p.weights, stack, p.cell.backward);
    x = view(p.x).detach().requires_grad_(p.cell.backward);
    y0 = view(p.y0);
    dy = view(p.dy);
  }
  void call(Index copy) {
    const Parameters& w = copies[static_cast<std::size_t>(copy)];
    const Inputs in{problem.cell, problem.scale, x, y0};
    if (!problem.cell.backward) {
      const c10::InferenceMode inference;
      y = formula(in, w);
      return;
    }
    y = formula(in, w);
    std::vector<Tensor> leaves = w.leaves();
    leaves.push_back(x);
    gradients = torch::autograd::grad({y}, leaves, {dy}, /*retain_graph=*/false, /*create_graph=*/false,
                                      /*allow_unused=*/true);
  }
  void publish() const {
    const torch::NoGradGuard guard;
    view(problem.y).copy_(y);
    if (problem.cell.backward) view(problem.dx).copy_(gradients.back());
  }
  std::vector<float> gradient() const {
    std::vector<float> all;
    const std::vector<Tensor> leaves = copies.front().leaves();
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      Tensor g = gradients[i].defined() ? gradients[i] : at::zeros_like(leaves[i]);
      const bool transposed =
          !stacked && i >= copies.front().a.size() && i < copies.front().a.size() + copies.front().b.size();
      g = (transposed ? g.t() : g).contiguous();
      all.insert(all.end(), g.data_ptr<float>(), g.data_ptr<float>() + g.numel());
    }
    return all;
  }
};

// PEFT, `lora.Linear.forward`: result + lora_B(lora_A(x)) * scaling.
Tensor peft_lora(const Inputs& in, const Parameters& w) {
  return in.y0 + at::linear(at::linear(in.x, w.a[0]), w.b[0]) * in.scale;
}
// PEFT, `ia3.Linear.forward`: result * l.
Tensor ia3(const Inputs& in, const Parameters& w) { return in.x * w.l; }
// MoV, `mov.py`: x * (softmax(x R) L).
Tensor mov(const Inputs& in, const Parameters& w) {
  return in.x * at::mm(at::softmax(at::linear(in.x, w.router), 1), w.l);
}
// LoRAMoE, `lora.Linear.forward`: result += route_weight[i] * lora_B_i(lora_A_i(x)) * scaling.
Tensor loramoe(const Inputs& in, const Parameters& w) {
  const Tensor p = at::softmax(at::linear(in.x, w.router), -1);
  Tensor result = in.y0.clone();
  for (std::size_t e = 0; e < w.a.size(); ++e)
    result += p.select(1, static_cast<Index>(e)).unsqueeze(-1) *
              at::linear(at::linear(in.x, w.a[e]), w.b[e]) * in.scale;
  return result;
}
// MoLA, `Linear_MoE.forward`, and MoE-PEFT, `MolaSparseMoe.forward`: each expert gathers its tokens. MoLA
// passes experts over that have none and adds in place.
Tensor sparse(const Inputs& in, const Parameters& w, bool mola) {
  const Cell& cell = in.cell;
  auto [weights, chosen] = at::topk(at::softmax(at::linear(in.x, w.router), 1), cell.chosen, -1);
  weights = weights / weights.sum(-1, true);
  const Tensor mask = at::one_hot(chosen, cell.experts).permute({2, 1, 0});
  Tensor all = at::zeros({cell.tokens, cell.d});
  for (std::size_t e = 0; e < w.a.size(); ++e) {
    const std::vector<Tensor> where = at::where(mask[static_cast<Index>(e)]);
    const Tensor &place = where[0], &token = where[1];
    if (mola && token.size(0) == 0) continue;
    const Tensor out = at::linear(at::linear(in.x.index({token}), w.a[e]), w.b[e]) * in.scale;
    all.index_add_(0, token, out * weights.index({token, place}).unsqueeze(-1));
  }
  return in.y0 + all;
}
Tensor mola(const Inputs& in, const Parameters& w) { return sparse(in, w, true); }
Tensor moepeft(const Inputs& in, const Parameters& w) { return sparse(in, w, false); }

/// Every expert's weight for every token; 0 where top-2 left it out.
Tensor gates(const Inputs& in, const Tensor& logits) {
  const Tensor p = at::softmax(logits, 1);
  if (in.cell.op != Op::top2) return p;
  auto [weights, chosen] = at::topk(p, in.cell.chosen, -1);
  return at::zeros_like(p).scatter(1, chosen, weights / weights.sum(-1, true));
}
// The experts concatenated, by autograd.
Tensor concat(const Inputs& in, const Parameters& w) {
  const Cell& cell = in.cell;
  Tensor c = at::linear(in.x, w.a[0]);
  if (cell.routed())
    c = (c.view({cell.tokens, cell.experts, cell.rank}) * gates(in, at::linear(in.x, w.router)).unsqueeze(-1))
            .view({cell.tokens, cell.ranks()});
  return at::addmm(in.y0, c, w.b[0], 1, in.scale);
}

/// The experts concatenated, lora too: into memory that is there already, y and gradients in place, every
/// product one call of BLAS. The strongest general form in libtorch.
struct InPlace {
  Problem& problem;
  bool stacked;  // the router's product with the experts'
  std::vector<Parameters> copies;
  std::vector<Tensor> down;  // [A; G]
  Tensor x, dy, y, dx, hz, h, z, c, p, u, da, db, dg;

  InPlace(Problem& problem_, bool stack) : problem(problem_), stacked(stack && problem_.cell.routed()) {
    const Cell& cell = problem.cell;
    const Index n = cell.ranks(), t = cell.tokens, gate = cell.routed() ? cell.experts : 0;
    for (Index i = 0; i < problem.copies; ++i) {
      copies.emplace_back(cell, problem.weights, true, false);
      if (stacked) down.push_back(at::cat({copies.back().a[0], copies.back().router}));
    }
    x = view(problem.x), dy = view(problem.dy), y = view(problem.y), dx = view(problem.dx);
    hz = at::empty({t, stacked ? n + gate : n});
    h = hz.narrow(1, 0, n);
    z = stacked ? hz.narrow(1, n, gate) : at::empty({t, gate});
    c = cell.backward && gate > 0 ? at::empty({t, n}) : h;
    p = at::empty({t, gate});
    u = at::empty({t, n});
    if (!cell.backward) return;
    da = at::zeros({n, cell.d}), db = at::zeros({n, cell.d}), dg = at::zeros({gate, cell.d});
  }
  Tensor by_expert(const Tensor& t) const {
    return t.unflatten(1, {problem.cell.experts, problem.cell.rank});
  }
  void call(Index copy) {
    const c10::InferenceMode inference;
    const Cell& cell = problem.cell;
    const auto at = static_cast<std::size_t>(copy);
    const Parameters& w = copies[at];
    if (stacked) {
      at::mm_out(hz, x, down[at].t());
    } else {
      at::mm_out(hz, x, w.a[0].t());
      if (cell.routed()) at::mm_out(z, x, w.router.t());
    }
    if (cell.op == Op::soft) at::_softmax_out(p, z, 1, false);
    if (cell.op == Op::top2) {
      auto [weights, chosen] = at::topk(z, cell.chosen, -1);
      p.zero_().scatter_(1, chosen, at::softmax(weights, 1));
    }
    if (cell.routed()) {
      Tensor gated = by_expert(c);
      at::mul_out(gated, by_expert(h), p.unsqueeze(-1));
    }
    y.addmm_(c, w.b[0], 1, problem.scale);
    if (!cell.backward) return;
    at::mm_out(u, dy, w.b[0].t());
    if (cell.routed()) {
      const Tensor dp = at::mul(h, u).view({cell.tokens, cell.experts, cell.rank}).sum(2).mul_(problem.scale);
      const Tensor dz = dp.sub_((dp * p).sum(1, true)).mul_(p);
      by_expert(u).mul_(p.unsqueeze(-1));
      dx.addmm_(dz, w.router);
      dg.addmm_(dz.t(), x);
    }
    dx.addmm_(u, w.a[0], 1, problem.scale);
    da.addmm_(u.t(), x, 1, problem.scale);
    db.addmm_(c.t(), dy, 1, problem.scale);
  }
  std::vector<float> gradient() const {
    std::vector<float> all;
    for (const Tensor& g : {da, db, dg})
      all.insert(all.end(), g.data_ptr<float>(), g.data_ptr<float>() + g.numel());
    return all;
  }
};

template <class State>
Variant variant(const std::string& name, const std::shared_ptr<State>& state) {
  Variant v{.name = name, .call = [state](Index copy) { state->call(copy); }};
  if constexpr (requires { state->publish(); }) v.publish = [state] { state->publish(); };
  if (state->problem.cell.backward) v.gradient = [state] { return state->gradient(); };
  return v;
}
Variant formula(const std::string& name, Problem& problem, Formula f, bool stacked) {
  return variant(name, std::make_shared<Run>(problem, std::move(f), stacked));
}
Variant in_place(const std::string& name, Problem& problem, bool stacked) {
  return variant(name, std::make_shared<InPlace>(problem, stacked));
}

/// The forward of ia3 and mov into memory that is there already.
Variant vectors_in_place(Problem& problem) {
  auto run = std::make_shared<Run>(problem, nullptr, true);
  const Index t = problem.cell.tokens, e = problem.cell.experts;
  return {.name = "in place",
          .call = [run, y = view(problem.y), z = at::empty({t, e}), p = at::empty({t, e}),
                   s = at::empty({t, problem.cell.d})](Index copy) mutable {
            const c10::InferenceMode inference;
            const Parameters& w = run->copies[static_cast<std::size_t>(copy)];
            if (!w.router.defined()) {
              at::mul_out(y, run->x, w.l);
              return;
            }
            at::mm_out(z, run->x, w.router.t());
            at::_softmax_out(p, z, 1, false);
            at::mm_out(s, p, w.l);
            at::mul_out(y, run->x, s);
          }};
}

}  // namespace

Contestants torch_peers(Problem& problem) {
  const Cell& cell = problem.cell;
  const auto one = [&](const std::string& name, const Formula& f) {
    return Contestant{.name = name, .variants = {formula("fresh", problem, f, false)}};
  };
  Contestants all;
  if (!cell.lora_kind()) {
    all.push_back(cell.op == Op::ia3 ? one("libtorch_ia3", ia3) : one("libtorch_mov", mov));
    if (!cell.backward) all.back().variants.push_back(vectors_in_place(problem));
    return all;
  }
  Contestant best{.name = cell.routed() ? "libtorch_concat" : "libtorch_lora_inplace",
                  .variants = {in_place("in place, stacked", problem, true)}};
  if (cell.routed()) best.variants.push_back(in_place("in place", problem, false));
  if (cell.routed() && cell.backward) best.variants.push_back(formula("autograd", problem, concat, true));
  all.push_back(best);
  if (cell.op == Op::lora) all.push_back(one("libtorch_peft_lora", peft_lora));
  if (cell.op == Op::soft) all.push_back(one("libtorch_loramoe_loop", loramoe));
  if (cell.op != Op::top2) return all;
  all.push_back(one("libtorch_mola_loop", mola));
  all.push_back(one("libtorch_moepeft_loop", moepeft));
  return all;
}

std::string torch_version() { return TORCH_VERSION; }
void torch_threads(int threads) { at::set_num_threads(threads); }

void torch_product() {
  const c10::InferenceMode inference;
  static const Tensor x = at::ones({512, 768}), w = at::ones({768, 768});
  static Tensor y = at::empty({512, 768});
  at::mm_out(y, x, w.t());
}

}  // namespace compare
