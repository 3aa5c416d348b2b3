// SPDX-License-Identifier: MIT
#include "concat.hpp"

#include <algorithm>
#include <memory>

namespace compare {

void weigh(const Cell& cell, const float* logits, float* p) {
  Eigen::Map<Eigen::ArrayXf> to(p, cell.experts);
  const Eigen::Map<const Eigen::ArrayXf> z(logits, cell.experts);
  if (cell.op != Op::top2) {
    to = (z - z.maxCoeff()).exp();
    to /= to.sum();
    return;
  }
  // The softmax over all cancels where the chosen are divided by their sum.
  Index first = 0, second = -1;
  for (Index e = 1; e < cell.experts; ++e)
    if (z[e] > z[first]) first = e;
  for (Index e = 0; e < cell.experts; ++e)
    if (e != first && (second < 0 || z[e] > z[second])) second = e;
  to.setZero();
  const float weight = cell.chosen < 2 ? 0.0f : std::exp(z[second] - z[first]);
  to[first] = 1 / (1 + weight);
  if (cell.chosen == 2) to[second] = weight / (1 + weight);
}

void weigh_backward(const Cell& cell, const float* p, float* dp_to_dz) {
  const Eigen::Map<const Eigen::ArrayXf> gates(p, cell.experts);
  Eigen::Map<Eigen::ArrayXf> slope(dp_to_dz, cell.experts);
  const float mean = (gates * slope).sum();
  slope = gates * (slope - mean);
}

namespace {

struct EigenGemm {
  void operator()(bool ta, bool tb, Index m, Index n, Index k, float alpha, const float* a, Index lda,
                  const float* b, Index ldb, float beta, float* c, Index ldc) const {
    using View = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;
    const View left(a, ta ? k : m, ta ? m : k, Eigen::OuterStride<>(lda));
    const View right(b, tb ? n : k, tb ? k : n, Eigen::OuterStride<>(ldb));
    Eigen::Map<Matrix, 0, Eigen::OuterStride<>> to(c, m, n, Eigen::OuterStride<>(ldc));
    if (beta == 0) to.setZero();
    if (ta)
      to.noalias() += alpha * left.transpose() * right;
    else if (tb)
      to.noalias() += alpha * left * right.transpose();
    else
      to.noalias() += alpha * left * right;
  }
};

/// y += p_e (s (x A_e^T) B_e), expert by expert with its output as a matrix, as one writes it first.
struct NaiveLora {
  Problem& problem;
  std::vector<Weights> weights;
  Weights gradient;

  void call(Index copy) {
    const Cell& cell = problem.cell;
    const Weights& w = weights[static_cast<std::size_t>(copy)];
    Matrix p = Matrix::Ones(cell.tokens, cell.experts), dp(cell.tokens, cell.experts);
    if (cell.routed()) {
      const Matrix logits = problem.x * w.router.transpose();
      for (Index t = 0; t < cell.tokens; ++t) weigh(cell, logits.row(t).data(), p.row(t).data());
    }
    for (Index e = 0; e < cell.experts; ++e) {
      const auto a = w.a.middleRows(e * cell.rank, cell.rank), b = w.b.middleRows(e * cell.rank, cell.rank);
      const Matrix h = problem.x * a.transpose();
      const Matrix out = problem.scale * h * b;
      problem.y += p.col(e).asDiagonal() * out;
      if (!cell.backward) continue;
      dp.col(e) = problem.dy.cwiseProduct(out).rowwise().sum();
      const Matrix dout = (problem.scale * p.col(e)).asDiagonal() * problem.dy;
      const Matrix dh = dout * b.transpose();
      gradient.b.middleRows(e * cell.rank, cell.rank) += h.transpose() * dout;
      gradient.a.middleRows(e * cell.rank, cell.rank) += dh.transpose() * problem.x;
      problem.dx += dh * a;
    }
    if (!cell.backward || !cell.routed()) return;
    for (Index t = 0; t < cell.tokens; ++t) weigh_backward(cell, p.row(t).data(), dp.row(t).data());
    problem.dx += dp * w.router;
    gradient.router += dp.transpose() * problem.x;
  }
};

/// top2 token by token, two matrix-vector products for each expert that it chose: with Eigen alone faster
/// than gathering each expert's tokens.
struct TokenTop2 {
  Problem& problem;
  std::vector<Weights> weights;
  Weights gradient;

  void call(Index copy) {
    const Cell& cell = problem.cell;
    const Weights& w = weights[static_cast<std::size_t>(copy)];
    Eigen::RowVectorXf logits(cell.experts), p(cell.experts), dp(cell.experts), h(cell.rank), u(cell.rank);
    for (Index t = 0; t < cell.tokens; ++t) {
      const auto x = problem.x.row(t), dy = problem.dy.row(t);
      logits.noalias() = x * w.router.transpose();
      weigh(cell, logits.data(), p.data());
      dp.setZero();
      for (Index e = 0; e < cell.experts; ++e) {
        if (p[e] == 0) continue;
        const Index from = e * cell.rank;
        const auto a = w.a.middleRows(from, cell.rank), b = w.b.middleRows(from, cell.rank);
        const float weight = problem.scale * p[e];
        h.noalias() = x * a.transpose();
        problem.y.row(t).noalias() += weight * h * b;
        if (!cell.backward) continue;
        u.noalias() = problem.scale * dy * b.transpose();
        dp[e] = u.dot(h);
        u *= p[e];
        problem.dx.row(t).noalias() += u * a;
        gradient.a.middleRows(from, cell.rank).noalias() += u.transpose() * x;
        gradient.b.middleRows(from, cell.rank).noalias() += weight * h.transpose() * dy;
      }
      if (!cell.backward) continue;
      weigh_backward(cell, p.data(), dp.data());
      problem.dx.row(t).noalias() += dp * w.router;
      gradient.router.noalias() += dp.transpose() * x;
    }
  }
};

/// y = x o (p L), in tiles of tokens; ia3 is p = 1.
struct Vectors {
  Problem& problem;
  std::vector<Weights> weights;
  Weights gradient;
  Index tile;
  Matrix p{}, dp{};

  void call(Index copy) {
    const Cell& cell = problem.cell;
    const Weights& w = weights[static_cast<std::size_t>(copy)];
    if (p.size() == 0) p = dp = Matrix::Ones(cell.tokens, cell.experts);
    moxie::for_blocks((cell.tokens + tile - 1) / tile, cell.threads, [&](Index block, int) {
      const Index first = block * tile;
      rows(w, first, std::min(tile, cell.tokens - first));
    });
    if (!cell.backward) return;
    const Index columns = (cell.d / cell.threads + 15) / 16 * 16;
    moxie::for_blocks((cell.d + columns - 1) / columns, cell.threads, [&](Index block, int) {
      const Index first = block * columns, count = std::min(columns, cell.d - first);
      const auto x = problem.x.middleCols(first, count), dy = problem.dy.middleCols(first, count);
      if (!cell.routed()) {
        for (Index t = 0; t < cell.tokens; ++t)
          gradient.l.row(0).segment(first, count) += dy.row(t).cwiseProduct(x.row(t));
        return;
      }
      Matrix ds(std::min<Index>(64, cell.tokens), count);
      for (Index t = 0; t < cell.tokens; t += ds.rows()) {
        const Index rows = std::min(ds.rows(), cell.tokens - t);
        ds.topRows(rows) = dy.middleRows(t, rows).cwiseProduct(x.middleRows(t, rows));
        gradient.l.middleCols(first, count).noalias() += p.middleRows(t, rows).transpose() * ds.topRows(rows);
      }
      gradient.router.middleCols(first, count).noalias() += dp.transpose() * x;
    });
  }

 private:
  void rows(const Weights& w, Index first, Index count) {
    const Cell& cell = problem.cell;
    const auto x = problem.x.middleRows(first, count), dy = problem.dy.middleRows(first, count);
    auto y = problem.y.middleRows(first, count), dx = problem.dx.middleRows(first, count);
    if (!cell.routed()) {
      y.array() = x.array().rowwise() * w.l.row(0).array();
      if (cell.backward) dx.array() += dy.array().rowwise() * w.l.row(0).array();
      return;
    }
    auto gates = p.middleRows(first, count), slopes = dp.middleRows(first, count);
    gates.noalias() = x * w.router.transpose();
    for (Index t = 0; t < count; ++t) weigh(cell, gates.row(t).data(), gates.row(t).data());
    Matrix s(count, cell.d);
    s.noalias() = gates * w.l;
    y = x.cwiseProduct(s);
    if (!cell.backward) return;
    dx += dy.cwiseProduct(s);
    s = dy.cwiseProduct(x);
    slopes.noalias() = s * w.l.transpose();
    for (Index t = 0; t < count; ++t) weigh_backward(cell, gates.row(t).data(), slopes.row(t).data());
    dx.noalias() += slopes * w.router;
  }
};

template <class State>
Variant variant(const std::string& name, const std::shared_ptr<State>& state) {
  Variant v{.name = name, .call = [state](Index copy) { state->call(copy); }};
  if (state->problem.cell.backward)
    v.gradient = [state] {
      std::vector<float> all;
      const Weights& g = state->gradient;
      for (const Matrix* m : {&g.a, &g.b, &g.l, &g.router})
        all.insert(all.end(), m->data(), m->data() + m->size());
      return all;
    };
  return v;
}

Weights zero(const Weights& w) {
  const auto like = [](const Matrix& m) -> Matrix { return Matrix::Zero(m.rows(), m.cols()); };
  return {like(w.a), like(w.b), like(w.l), like(w.router)};
}

}  // namespace

Contestants eigen_peers(Problem& problem) {
  const Cell& cell = problem.cell;
  const std::vector<Weights> copies(static_cast<std::size_t>(problem.copies), problem.weights);
  const Weights none = cell.backward ? zero(problem.weights) : Weights{};
  Contestant naive{.name = "eigen_naive", .variants = {}}, concat{.name = "eigen_concat", .variants = {}};
  // Eigen packs the weights again for every tile, so few large ones; threads need one each at least. The
  // usually fastest is the first.
  const Index share = (cell.tokens + cell.threads - 1) / cell.threads;
  std::vector<Index> tiles;
  for (const Index tile : {Index{256}, Index{64}})
    if (tile < share) tiles.push_back(tile);
  tiles.push_back(share);

  if (!cell.lora_kind()) {
    Contestant& peer = cell.op == Op::ia3 ? naive : concat;
    for (const Index tile : tiles)
      peer.variants.push_back(variant("tile " + std::to_string(tile),
                                      std::make_shared<Vectors>(Vectors{problem, copies, none, tile})));
    if (cell.op == Op::mov && cell.threads == 1)
      naive.variants.push_back(
          variant("", std::make_shared<Vectors>(Vectors{problem, copies, none, cell.tokens})));
  } else {
    if (cell.threads == 1 && cell.op == Op::top2)
      naive.variants.push_back(variant("", std::make_shared<TokenTop2>(TokenTop2{problem, copies, none})));
    else if (cell.threads == 1)
      naive.variants.push_back(variant("", std::make_shared<NaiveLora>(NaiveLora{problem, copies, none})));
    for (const Index tile : tiles) {
      auto state = std::make_shared<Concat<EigenGemm>>(problem, EigenGemm{}, tile, cell.threads);
      Variant v{.name = "tile " + std::to_string(tile), .call = [state](Index copy) { state->call(copy); }};
      if (cell.backward) v.gradient = [state] { return state->gradient(); };
      concat.variants.push_back(v);
    }
  }
  Contestants all;
  for (Contestant& peer : {std::ref(naive), std::ref(concat)})
    if (!peer.variants.empty()) all.push_back(peer);
  return all;
}

}  // namespace compare
