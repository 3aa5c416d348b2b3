// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/cases.hpp"
#include "support/refusal.hpp"

#include <moxie/tensor.hpp>

using namespace moxie;
using namespace moxie::test;

TEMPLATE_TEST_CASE("a (batch, seq, d) tensor is the rows of a call, without a copy", "[tensor]", float,
                   double) {
  using S = TestType;
  Eigen::Tensor<S, 3, Eigen::RowMajor> x(2, 5, 6), y(2, 5, 4);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<S>(i % 7) - S(3);
  y.setConstant(S(1));
  const auto& constant = x;
  const In<S> in = rows(constant);
  CHECK((in.data == x.data() && in.rows == 10 && in.cols == 6 && in.stride == 6));
  CHECK(rows(y).data == y.data());
  CHECK(in.row(7)[2] == x(1, 2, 2));
  const auto adapter = lora<S>({.in = 6, .out = 4, .rank = 2});
  std::vector<S> theta(naive::at(adapter.size()));
  Rng(1).fill(theta, -1, 1);
  Matrix<S> wanted = Matrix<S>::Ones(10, 4);
  const Matrix<S> flat = Eigen::Map<const Matrix<S>>(x.data(), 10, 6);
  Cache<S> cache;
  Workspace<S> workspace;
  adapter.forward(theta, flat, wanted, cache, workspace);
  adapter.forward(theta, rows(constant), rows(y), cache, workspace);
  CHECK(same_bits(wanted, Matrix<S>(Eigen::Map<const Matrix<S>>(y.data(), 10, 4))));
  Eigen::TensorMap<Eigen::Tensor<S, 3, Eigen::RowMajor>> mapped(x.data(), 5, 2, 6);
  CHECK((rows(mapped).rows == 10 && rows(mapped).data == x.data()));
  const Eigen::TensorMap<const Eigen::Tensor<S, 3, Eigen::RowMajor>> read_only(x.data(), 5, 2, 6);
  const In<S> view = rows(read_only);
  CHECK(view.data == x.data());
}

TEST_CASE("a bank's A, B and L are rank-3 tensors over theta", "[tensor]") {
  const LoraBank<double> bank({.in = 5, .out = 4, .experts = 3, .rank = 2});
  std::vector<double> theta(naive::at(bank.size()));
  for (std::size_t i = 0; i < theta.size(); ++i) theta[i] = static_cast<double>(i);
  auto a = lora_a(bank, std::span<double>(theta));
  auto b = lora_b(bank, std::span<double>(theta));
  CHECK((a.dimension(0) == 3 && a.dimension(1) == 2 && a.dimension(2) == 5));
  CHECK((b.dimension(0) == 3 && b.dimension(1) == 2 && b.dimension(2) == 4));
  CHECK(a(2, 1, 3) == theta[naive::at(bank.begin(2) * 5 + 5 + 3)]);
  CHECK(b(1, 0, 2) == theta[naive::at(30 + bank.begin(1) * 4 + 2)]);
  a(0, 0, 0) = 99;
  CHECK(theta[0] == 99);
  const Ia3Bank<double> vectors({.features = 6, .heads = 2, .experts = 4});
  auto l = ia3_l(vectors, std::span<double>(theta));
  CHECK((l.dimension(0) == 2 && l.dimension(1) == 4 && l.dimension(2) == 3));
  CHECK(l(1, 2, 0) == 12 + 6);
  const LoraBank<double> mixed({.in = 5, .out = 4, .experts = 2, .ranks = {2, 4}});
  refused([&] { lora_a(mixed, std::span<double>(theta)); }, Code::shape_mismatch, {"rank 4", "rank 2"});
  refused([&] { lora_b(bank, std::span<double>(theta).first(3)); }, Code::shape_mismatch,
          {"theta", "3", "54"});
  refused([&] { ia3_l(vectors, std::span<double>(theta).first(3)); }, Code::shape_mismatch,
          {"theta", "3", "24"});
}
