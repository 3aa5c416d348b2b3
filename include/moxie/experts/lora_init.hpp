// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/experts/lora.hpp>

#include <Eigen/QR>
#include <Eigen/SVD>

namespace moxie::inline MOXIE_ABI {

/// Starts of a single LoRA that follow the frozen weight W [out, in]. (PEFT `lora/layer.py`)
enum class WeightInit {
  pissa,  ///< W = V S U^T: A = sqrt(S_r / s) U_r^T, B = V_r sqrt(S_r / s). arXiv:2404.02948
  olora,  ///< W = Q R: B = Q_r, A = R_r. arXiv:2406.01775
  mica,   ///< B = the last r left singular vectors, A = 0; B is to stay: switch its group's `trainable` off
};

namespace detail {

/// Single experts of a rank that W has, or the reason why not.
template <Scalar S>
void expect_single(const LoraBank<S>& bank, std::span<const S> theta, Index most) {
  expect_size("theta", theta.size(), bank.size());
  expect_range(bank.experts() == 1, "the number of LoRA experts", static_cast<double>(bank.experts()),
               "1 for an initialisation from a weight");
  expect_range(bank.rank(0) <= most, "LoRA rank", static_cast<double>(bank.rank(0)),
               "at most " + text(most) + ", the weight's");
}

}  // namespace detail

/// Starts A and B from W and writes the residual W - s B A, which takes W's place as the frozen weight (for
/// MiCA it is W); it may be W's own memory. Throws ConfigRange for several experts or a rank beyond W's,
/// ShapeMismatch.
template <Scalar S>
void init_from_weight(const LoraBank<S>& bank, WeightInit init, In<S> weight, std::span<S> theta,
                      Out<S> residual) {
  using Dense = Eigen::MatrixXd;
  const Index in = bank.in(), out = bank.out(), r = bank.rank(0);
  detail::expect_single(bank, std::span<const S>(theta), std::min(in, out));
  detail::expect_shape("weight", weight, out, in);
  detail::expect_shape("residual", residual, out, in);
  if (!detail::same_place(residual, weight)) detail::expect_apart("residual", residual, "weight", weight);
  detail::expect_apart("residual", residual, "theta", detail::as_view(theta));
  detail::expect_apart("theta", detail::as_view(theta), "weight", weight);
  const double s = static_cast<double>(bank.scale(0));
  detail::expect_range(s > 0, "LoRA scale", s, "above 0 for an initialisation from a weight");

  Dense w(out, in), a = Dense::Zero(r, in), b;
  for (Index o = 0; o < out; ++o)
    for (Index i = 0; i < in; ++i) w(o, i) = static_cast<double>(weight.row(o)[i]);
  if (!w.allFinite()) fail(Code::non_finite, "the weight holds NaN or infinity, wanted finite numbers");
  if (init == WeightInit::olora) {
    const Eigen::HouseholderQR<Dense> qr(w);
    b = Dense(qr.householderQ() * Dense::Identity(out, r));
    a = Dense(qr.matrixQR().template triangularView<Eigen::Upper>()).topRows(r);
  } else {
    const Eigen::BDCSVD<Dense> svd(w, Eigen::ComputeThinU | Eigen::ComputeThinV);
    if (init == WeightInit::mica) {
      b = svd.matrixU().rightCols(r);
    } else {
      const Eigen::VectorXd root = (svd.singularValues().head(r) / s).cwiseSqrt();
      b = svd.matrixU().leftCols(r) * root.asDiagonal();
      a = root.asDiagonal() * svd.matrixV().leftCols(r).transpose();
    }
  }
  w -= s * (b * a);
  std::fill(theta.begin(), theta.end(), S(0));
  for (Index j = 0; j < r; ++j) {
    for (Index i = 0; i < in; ++i) theta[static_cast<std::size_t>(j * in + i)] = static_cast<S>(a(j, i));
    for (Index o = 0; o < out; ++o)
      theta[static_cast<std::size_t>(r * in + j * out + o)] = static_cast<S>(b(o, j));
  }
  for (Index o = 0; o < out; ++o)
    for (Index i = 0; i < in; ++i) residual.row(o)[i] = static_cast<S>(w(o, i));
}

/// PEFT's "orthogonal" start: A and B random with B A = 0, though neither is. With Q orthogonal [r, r] and X,
/// Y standard normal: A = (X Q_even)^T / 10, B = Y^T Q_odd / 10, by the rows of Q from 0. Throws ConfigRange
/// for an odd rank or several experts.
template <Scalar S>
void init_orthogonal(const LoraBank<S>& bank, std::span<S> theta, std::uint64_t seed) {
  using Dense = Eigen::MatrixXd;
  const Index in = bank.in(), out = bank.out(), r = bank.rank(0), half = r / 2;
  detail::expect_single(bank, std::span<const S>(theta), r);
  detail::expect_range(r % 2 == 0, "LoRA rank", static_cast<double>(r),
                       "an even number for the orthogonal start");
  const auto normal = [&](std::uint64_t part, Index rows, Index cols) {
    Dense m(rows, cols);
    const std::uint64_t stream = random::key(random::Use::init, {seed, 3, part});
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols; ++j)
        m(i, j) = random::normal(stream, static_cast<std::uint64_t>(i * cols + j));
    return m;
  };
  const Dense q = Eigen::HouseholderQR<Dense>(normal(0, r, r)).householderQ() * Dense::Identity(r, r);
  const Dense x = normal(1, in, half), y = normal(2, half, out);
  std::fill(theta.begin(), theta.end(), S(0));
  for (Index j = 0; j < r; ++j) {
    for (Index i = 0; i < in; ++i) {
      double sum = 0;
      for (Index k = 0; k < half; ++k) sum += x(i, k) * q(2 * k, j);
      theta[static_cast<std::size_t>(j * in + i)] = static_cast<S>(sum / 10);
    }
    for (Index o = 0; o < out; ++o) {
      double sum = 0;
      for (Index k = 0; k < half; ++k) sum += y(k, o) * q(2 * k + 1, j);
      theta[static_cast<std::size_t>(r * in + j * out + o)] = static_cast<S>(sum / 10);
    }
  }
}

}  // namespace moxie::inline MOXIE_ABI
