// SPDX-License-Identifier: MIT
#include "problem.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>

namespace compare {
namespace {

/// Uniform on [middle - half, middle + half), the same on every machine. (splitmix64)
void fill(float* values, Index n, std::uint64_t stream, double middle, double half) {
  std::uint64_t state = stream * 0x9E3779B97F4A7C15u;
  for (Index i = 0; i < n; ++i) {
    std::uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    const double u = static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
    values[i] = static_cast<float>(middle + (2 * u - 1) * half);
  }
}
Matrix matrix(Index rows, Index cols, std::uint64_t stream, double middle, double half) {
  Matrix m(rows, cols);
  fill(m.data(), m.size(), stream, middle, half);
  return m;
}

/// The experts of the largest logits of a token, and how far the next one is.
struct Choice {
  std::vector<Index> experts;
  float gap;
};
Choice choose(const Matrix& router, const float* token, Index chosen) {
  const Eigen::Map<const Eigen::VectorXf> x(token, router.cols());
  const Eigen::VectorXf logits = router * x;
  std::vector<Index> by_logit(static_cast<std::size_t>(router.rows()));
  for (std::size_t e = 0; e < by_logit.size(); ++e) by_logit[e] = static_cast<Index>(e);
  std::sort(by_logit.begin(), by_logit.end(), [&](Index a, Index b) { return logits[a] > logits[b]; });
  const auto k = static_cast<std::size_t>(chosen);
  const float gap = k < by_logit.size() ? logits[by_logit[k - 1]] - logits[by_logit[k]] : 1.0f;
  by_logit.resize(k);
  return {by_logit, gap};
}

}  // namespace

Problem::Problem(const Cell& c, double l2_bytes) : cell(c), touched(c.experts) {
  // Logits and hidden values of variance about 1: no peaked softmax, nothing that becomes denormal.
  const double in = 3 / std::sqrt(static_cast<double>(c.d));
  if (c.lora_kind()) {
    weights.a = matrix(c.ranks(), c.d, 1, 0, in);
    weights.b = matrix(c.ranks(), c.d, 2, 0, 1 / std::sqrt(static_cast<double>(c.rank)));
  } else {
    weights.l = matrix(c.experts, c.d, 3, 1, 0.5);
  }
  if (c.routed()) weights.router = matrix(c.experts, c.d, 4, 0, in);
  x = matrix(c.tokens, c.d, 5, 0, 1);
  y0 = matrix(c.tokens, c.d, 6, 0, 1);
  dy = matrix(c.tokens, c.d, 7, 0, 1);
  y = y0;
  dx = Matrix::Zero(c.tokens, c.d);

  if (c.op == Op::top2) {
    // No token between two choices, where rounding would decide.
    std::set<Index> used;
    for (Index t = 0; t < c.tokens; ++t) {
      Choice choice = choose(weights.router, x.row(t).data(), c.chosen);
      for (std::uint64_t retry = 1; choice.gap < 1e-3f; ++retry) {
        fill(x.row(t).data(), c.d, 1000 * retry + static_cast<std::uint64_t>(t) + 8, 0, 1);
        choice = choose(weights.router, x.row(t).data(), c.chosen);
      }
      used.insert(choice.experts.begin(), choice.experts.end());
    }
    touched = static_cast<Index>(used.size());
  }
  if (c.cold) {
    const double bytes = 4 * static_cast<double>(c.weights());
    copies = std::max<Index>(2, static_cast<Index>(std::ceil(4 * l2_bytes * c.threads / bytes)) + 1);
  }
}

}  // namespace compare
