// SPDX-License-Identifier: MIT
#pragma once

#include "problem.hpp"

#include <moxie/core/parallel.hpp>

#include <cmath>

namespace compare {

/// The experts' weights of a token from its logits, by the formulas: softmax, of which top-2 keeps two and
/// divides by their sum; and back.
void weigh(const Cell& cell, const float* logits, float* p);
void weigh_backward(const Cell& cell, const float* p, float* dp_to_dz);

/// lora, soft and top2 with the experts concatenated, over any matrix product: [h z] = x [A; G]^T, c = p h,
/// y += s c B. top2 is dense, with weights 0. `gemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)`
/// computes row-major c = beta c + alpha op(a) op(b).
template <class Gemm>
class Concat {
 public:
  /// Tokens in tiles on a team of `threads`; a product with threads of its own gets one tile and a team of
  /// one.
  Concat(Problem& problem, Gemm gemm, Index tile, int threads)
      : problem_(problem),
        gemm_(gemm),
        tile_(tile),
        threads_(threads),
        n_(problem.cell.ranks()),
        gates_(problem.cell.routed() ? problem.cell.experts : 0),
        width_(n_ + gates_),
        h_(problem.cell.tokens, width_),
        c_(problem.cell.tokens, n_),
        p_(problem.cell.tokens, gates_) {
    Matrix stacked(width_, problem.cell.d);
    stacked.topRows(n_) = problem.weights.a;
    if (gates_ > 0) stacked.bottomRows(gates_) = problem.weights.router;
    down_.assign(static_cast<std::size_t>(problem.copies), stacked);
    up_.assign(static_cast<std::size_t>(problem.copies), problem.weights.b);
    if (!problem.cell.backward) return;
    dh_ = Matrix(problem.cell.tokens, width_);
    ddown_ = Matrix::Zero(width_, problem.cell.d);
    dup_ = Matrix::Zero(n_, problem.cell.d);
  }

  void call(Index copy) {
    const Matrix &down = down_[static_cast<std::size_t>(copy)], &up = up_[static_cast<std::size_t>(copy)];
    const Index tokens = problem_.cell.tokens, d = problem_.cell.d;
    moxie::for_blocks((tokens + tile_ - 1) / tile_, threads_, [&](Index block, int) {
      const Index first = block * tile_, rows = std::min(tile_, tokens - first);
      forward(down, up, first, rows);
      if (problem_.cell.backward) backward(down, up, first, rows);
    });
    if (!problem_.cell.backward) return;
    // The weights' gradients sum over tokens: threads split their columns.
    const Index columns = (d / threads_ + 15) / 16 * 16;
    moxie::for_blocks((d + columns - 1) / columns, threads_, [&](Index block, int) {
      const Index first = block * columns, count = std::min(columns, d - first);
      gemm_(true, false, width_, count, tokens, 1, dh_.data(), width_, problem_.x.data() + first, d, 1,
            ddown_.data() + first, d);
      gemm_(true, false, n_, count, tokens, problem_.scale, c_.data(), n_, problem_.dy.data() + first, d, 1,
            dup_.data() + first, d);
    });
  }

  std::vector<float> gradient() const {
    std::vector<float> all(ddown_.data(), ddown_.data() + n_ * problem_.cell.d);
    all.insert(all.end(), dup_.data(), dup_.data() + dup_.size());
    all.insert(all.end(), ddown_.data() + n_ * problem_.cell.d, ddown_.data() + ddown_.size());
    return all;
  }

 private:
  void forward(const Matrix& down, const Matrix& up, Index first, Index rows) {
    const Cell& cell = problem_.cell;
    const Index d = cell.d;
    gemm_(false, true, rows, width_, d, 1, problem_.x.row(first).data(), d, down.data(), d, 0,
          h_.row(first).data(), width_);
    for (Index t = first; t < first + rows; ++t) {
      if (gates_ == 0) {
        c_.row(t) = h_.row(t);
        continue;
      }
      weigh(cell, h_.row(t).data() + n_, p_.row(t).data());
      for (Index e = 0; e < gates_; ++e)
        c_.row(t).segment(e * cell.rank, cell.rank) = p_(t, e) * h_.row(t).segment(e * cell.rank, cell.rank);
    }
    gemm_(false, false, rows, d, n_, problem_.scale, c_.row(first).data(), n_, up.data(), d, 1,
          problem_.y.row(first).data(), d);
  }

  void backward(const Matrix& down, const Matrix& up, Index first, Index rows) {
    const Cell& cell = problem_.cell;
    const Index d = cell.d, r = cell.rank;
    gemm_(false, true, rows, n_, d, problem_.scale, problem_.dy.row(first).data(), d, up.data(), d, 0,
          dh_.row(first).data(), width_);
    for (Index t = first; t < first + rows && gates_ > 0; ++t) {
      float* const dz = dh_.row(t).data() + n_;
      for (Index e = 0; e < gates_; ++e) {
        dz[e] = dh_.row(t).segment(e * r, r).dot(h_.row(t).segment(e * r, r));
        dh_.row(t).segment(e * r, r) *= p_(t, e);
      }
      weigh_backward(cell, p_.row(t).data(), dz);
    }
    gemm_(false, false, rows, d, width_, 1, dh_.row(first).data(), width_, down.data(), d, 1,
          problem_.dx.row(first).data(), d);
  }

  Problem& problem_;
  Gemm gemm_;
  Index tile_;
  int threads_;
  Index n_, gates_, width_;
  std::vector<Matrix> down_, up_;  // [A; G] [n + E, d] and B [n, d], a copy each
  Matrix h_, c_, p_, dh_, ddown_, dup_;
};

}  // namespace compare
