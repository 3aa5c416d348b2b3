// SPDX-License-Identifier: MIT
// An expert of your own: the library has never heard of it, and its routers weigh it token by token all the
// same. Here an expert scales and shifts every feature, y += sum over e of g_e (a_e * x + b_e), which makes a
// residual mixture of SSF (arXiv:2210.08823).
#include <moxie/moxie.hpp>

#include <algorithm>
#include <cstdio>
#include <random>

using moxie::Index;
using moxie::madd;

/// theta is the scales a [E, d], then the shifts b [E, d].
template <moxie::Scalar S>
class ScaleShiftBank {
 public:
  using Scalar = S;
  static constexpr bool multiplicative = false;  // it adds to y

  ScaleShiftBank(Index experts, Index d) : experts_(experts), d_(d) {}

  Index experts() const { return experts_; }
  Index in() const { return d_; }
  Index out() const { return d_; }
  Index rows_per_token() const { return 1; }
  Index size() const { return 2 * experts_ * d_; }
  std::vector<moxie::Field> fields() const {
    return {{.name = "scale", .shape = {experts_, d_}}, {.name = "shift", .shape = {experts_, d_}}};
  }
  void init(std::span<S> theta, std::uint64_t) const { std::fill(theta.begin(), theta.end(), S(0)); }

  // Both steps of backward need no more than x, dy and the gates, so nothing is kept for them.
  Index cached() const { return 0; }
  Index factors() const { return 0; }
  Index scratch(Index) const { return 0; }
  Index blocks(Index) const { return experts_; }  // the gradients of theta come expert by expert

  void forward_rows(const moxie::ForwardTile<S>& tile) const {
    for (Index t = 0; t < tile.x.rows; ++t) {
      const S* const g = tile.routing.gate_row(tile.first + t);
      for (Index i = 0; i < d_; ++i) {
        S sum = 0;
        for (Index e = 0; e < experts_; ++e) sum = madd(g[e], f(tile, e, t, i), sum);
        tile.y.row(t)[i] = madd(S(tile.run.scale), sum, tile.y.row(t)[i]);
      }
    }
  }

  /// dg_e = dy . f_e(x); dx += dy * sum over e of g_e a_e.
  void backward_rows(const moxie::BackwardTile<S>& tile) const {
    for (Index t = 0; t < tile.x.rows; ++t) {
      const S* const g = tile.routing.gate_row(tile.first + t);
      S* const dg = tile.drouting.gates.data() + (tile.first + t) * experts_;
      std::fill_n(dg, experts_, S(0));
      for (Index i = 0; i < d_; ++i) {
        const S dy = S(tile.run.scale) * tile.dy.row(t)[i];
        S slope = 0;
        for (Index e = 0; e < experts_; ++e) {
          dg[e] = madd(dy, f(tile, e, t, i), dg[e]);
          slope = madd(g[e], tile.theta.data()[e * d_ + i], slope);
        }
        if (!tile.dx.empty()) tile.dx.row(t)[i] = madd(dy, slope, tile.dx.row(t)[i]);
      }
    }
  }

  /// da_e += sum over tokens of g_e dy * x; db_e += sum over tokens of g_e dy.
  void backward_block(const moxie::BackwardBlock<S>& b) const {
    S* const da = b.dtheta.data() + b.block * d_;
    for (Index i = 0; i < d_; ++i) {
      S scale = 0, shift = 0;
      for (Index t = 0; t < b.x.rows; ++t) {
        const S gate = S(b.run.scale) * b.routing.gate_row(t)[b.block], dy = b.dy.row(t)[i];
        scale = madd(gate, dy * b.x.row(t)[i], scale);
        shift = madd(gate, dy, shift);
      }
      da[i] += scale;
      da[experts_ * d_ + i] += shift;
    }
  }

 private:
  /// Feature i of what expert e makes of token t.
  S f(const auto& tile, Index e, Index t, Index i) const {
    const S* const a = tile.theta.data() + e * d_ + i;
    return madd(a[0], tile.x.row(t)[i], a[experts_ * d_]);
  }

  Index experts_, d_;
};
static_assert(moxie::ExpertBank<ScaleShiftBank<float>> && moxie::ExpertBank<ScaleShiftBank<double>>);

moxie::Matrix<double> random_matrix(Index rows, Index cols, unsigned seed) {
  std::mt19937 random(seed);
  return moxie::Matrix<double>::NullaryExpr(rows, cols,
                                            [&] { return static_cast<double>(random() % 2001) / 1000 - 1; });
}

/// The largest difference between the gradients of <y, dy> and central differences, over theta and x.
double worst_gradient_error(const auto& adapter) {
  const Index tokens = 7;
  moxie::Matrix<double> x = random_matrix(tokens, adapter.in(), 1),
                        theta = random_matrix(1, adapter.size(), 2);
  const moxie::Matrix<double> dy = random_matrix(tokens, adapter.out(), 3);
  const std::span<double> parameters(theta.data(), static_cast<std::size_t>(theta.size()));
  moxie::Cache<double> cache;
  moxie::Workspace<double> workspace;
  const auto loss = [&] {
    moxie::Matrix<double> y = moxie::Matrix<double>::Zero(tokens, adapter.out());
    adapter.forward(parameters, x, y, cache, workspace);
    return y.cwiseProduct(dy).sum();
  };
  loss();
  moxie::Matrix<double> dx = moxie::Matrix<double>::Zero(tokens, adapter.in());
  std::vector<double> dtheta(parameters.size());
  adapter.backward(parameters, x, dy, cache, workspace, {}, dx, dtheta);

  double worst = 0;
  const auto compare = [&](double* values, const double* gradient, Index n) {
    for (Index i = 0; i < n; ++i) {
      const double step = 1e-5, value = values[i];
      values[i] = value + step;
      const double above = loss();
      values[i] = value - step;
      const double below = loss();
      values[i] = value;
      worst = std::max(worst, std::abs((above - below) / (2 * step) - gradient[i]));
    }
  };
  compare(theta.data(), dtheta.data(), theta.size());
  compare(x.data(), dx.data(), x.size());
  return worst;
}

int main() {
  const Index d = 6, tokens = 64;
  const ScaleShiftBank<double> bank(3, d);
  const moxie::MoeAdapter soft(bank, moxie::SoftRouter<double>({.in = d, .experts = 3}));
  const moxie::MoeAdapter top_2(bank, moxie::TopKRouter<double>({.in = d, .experts = 3, .k = 2}));
  const double soft_error = worst_gradient_error(soft), top_2_error = worst_gradient_error(top_2);
  std::printf("worst gradient error  soft router: %.0e  top-2 router: %.0e\n", soft_error, top_2_error);

  // Trained: tokens whose first feature is positive should be doubled, the others moved by 1.
  const moxie::Matrix<double> x = random_matrix(tokens, d, 4);
  moxie::Matrix<double> wanted = 2 * x;
  for (Index t = 0; t < tokens; ++t)
    if (x(t, 0) <= 0) wanted.row(t).array() = x.row(t).array() + 1;
  moxie::Buffer<double> theta = moxie::make_theta(soft, 1), gradient(theta.size());
  moxie::AdamW<double> adamw(moxie::parameter_groups(soft.fields()));
  moxie::Cache<double> cache;
  moxie::Workspace<double> workspace;
  for (int step = 0; step <= 300; ++step) {
    moxie::Matrix<double> y = x;
    soft.forward(theta, x, y, cache, workspace);
    const moxie::Matrix<double> dy = (y - wanted) / tokens;
    const double loss = tokens * dy.squaredNorm() / 2;
    if (step % 100 == 0) std::printf("step %3d  loss %.3f\n", step, loss);
    std::fill(gradient.begin(), gradient.end(), 0.0);
    soft.backward(theta, x, dy, cache, workspace, {}, {}, gradient);
    if (!adamw.step(theta, gradient, {.learning_rate = 0.03, .loss = loss}).applied) return 1;
  }
  return soft_error < 1e-8 && top_2_error < 1e-8 ? 0 : 1;
}
