// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/presets.hpp>

#include <unsupported/Eigen/CXX11/Tensor>

namespace moxie::inline MOXIE_ABI {

/// A (batch, seq, d) tensor as the [batch * seq, d] rows of a call, without a copy. Row-major tensors only.
template <Scalar S>
In<S> rows(const Eigen::Tensor<S, 3, Eigen::RowMajor>& t) {
  return {t.data(), t.dimension(0) * t.dimension(1), t.dimension(2)};
}
template <Scalar S>
Out<S> rows(Eigen::Tensor<S, 3, Eigen::RowMajor>& t) {
  return {t.data(), t.dimension(0) * t.dimension(1), t.dimension(2)};
}
template <class Plain>
auto rows(const Eigen::TensorMap<Plain>& t) {
  using S = std::remove_const_t<typename Plain::Scalar>;
  static_assert(Plain::NumIndices == 3 && int(Plain::Layout) == int(Eigen::RowMajor),
                "moxie: a view needs a row-major tensor of rank 3 (batch, seq, features)");
  using View = std::conditional_t<std::is_const_v<Plain>, In<S>, Out<S>>;
  return View(t.data(), t.dimension(0) * t.dimension(1), t.dimension(2));
}

/// Rank-3 view of a bank's parameters in theta.
template <class S>
using BankTensor = Eigen::TensorMap<Eigen::Tensor<S, 3, Eigen::RowMajor, Index>>;

namespace detail {

template <class S>
BankTensor<S> lora_tensor(const LoraBank<std::remove_const_t<S>>& bank, std::span<S> theta, Index offset,
                          Index d) {
  if (theta.size() < static_cast<std::size_t>(bank.size())) expect_size("theta", theta.size(), bank.size());
  for (Index e = 0; e < bank.experts(); ++e)
    if (bank.rank(e) != bank.rank(0))
      fail(Code::shape_mismatch, "expert " + text(e) + " has rank " + text(bank.rank(e)) +
                                     " and expert 0 rank " + text(bank.rank(0)) +
                                     "; a rank-3 tensor needs equal ranks");
  return BankTensor<S>(theta.data() + offset, bank.experts(), bank.rank(0), d);
}

}  // namespace detail

/// A as (E, r, in). Throws ShapeMismatch where the ranks differ or theta is too short.
template <Scalar S>
BankTensor<S> lora_a(const LoraBank<S>& bank, std::span<S> theta) {
  return detail::lora_tensor(bank, theta, 0, bank.in());
}
/// B as (E, r, out), PEFT's B transposed. Throws ShapeMismatch where the ranks differ or theta is too short.
template <Scalar S>
BankTensor<S> lora_b(const LoraBank<S>& bank, std::span<S> theta) {
  return detail::lora_tensor(bank, theta, bank.total_rank() * bank.in(), bank.out());
}
/// L as (heads, E, features / heads). Throws ShapeMismatch where theta is too short.
template <Scalar S>
BankTensor<S> ia3_l(const Ia3Bank<S>& bank, std::span<S> theta) {
  if (theta.size() < static_cast<std::size_t>(bank.size()))
    detail::expect_size("theta", theta.size(), bank.size());
  return BankTensor<S>(theta.data(), bank.rows_per_token(), bank.experts(),
                       bank.in() / bank.rows_per_token());
}

}  // namespace moxie::inline MOXIE_ABI
