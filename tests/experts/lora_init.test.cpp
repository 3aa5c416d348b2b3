// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/random.hpp"
#include "support/refusal.hpp"

#include <moxie/experts/lora_init.hpp>

using namespace moxie;
using namespace moxie::test;
using S = double;

namespace {

struct Start {
  Matrix<S> a, b;  ///< [r, in], [r, out]
  Matrix<S> residual;
};
Start start(const LoraBank<S>& bank, WeightInit init, const Matrix<S>& weight) {
  std::vector<S> theta(static_cast<std::size_t>(bank.size()), 5.0);
  Matrix<S> residual(weight.rows(), weight.cols());
  init_from_weight<S>(bank, init, weight, theta, residual);
  const Index r = bank.rank(0);
  return {Eigen::Map<Matrix<S>>(theta.data(), r, bank.in()),
          Eigen::Map<Matrix<S>>(theta.data() + r * bank.in(), r, bank.out()), residual};
}

}  // namespace

TEST_CASE("starts from the weight leave the layer's output as it was", "[experts]") {
  for (const auto& [in, out] : {std::pair<Index, Index>{9, 6}, {6, 9}}) {
    const Matrix<S> w = Rng(1).matrix<S>(out, in);
    const LoraBank<S> bank({.in = in, .out = out, .rank = 3, .alpha = 6});
    for (const auto init : {WeightInit::pissa, WeightInit::olora, WeightInit::mica}) {
      const Start s = start(bank, init, w);
      CHECK((s.residual + 2 * s.b.transpose() * s.a - w).norm() <= 1e-13);
      CHECK(s.b.norm() > 0.1);
      CHECK((init == WeightInit::mica) == s.a.isZero(0));
    }
    // PiSSA takes the three largest singular values out of W; MiCA's B spans what W uses least.
    const Eigen::BDCSVD<Eigen::MatrixXd> svd(w, Eigen::ComputeThinU | Eigen::ComputeThinV);
    const Eigen::BDCSVD<Eigen::MatrixXd> rest(Eigen::MatrixXd(start(bank, WeightInit::pissa, w).residual));
    for (Index i = 0; i < 3; ++i)
      CHECK(std::abs(rest.singularValues()(i) - svd.singularValues()(i + 3)) <= 1e-12);
    const Start pissa = start(bank, WeightInit::pissa, w);
    CHECK(std::abs(pissa.a.norm() - pissa.b.norm()) <= 1e-12);
    const Start mica = start(bank, WeightInit::mica, w);
    CHECK((mica.b * mica.b.transpose() - Matrix<S>::Identity(3, 3)).norm() <= 1e-13);
    const Start olora = start(bank, WeightInit::olora, w);
    CHECK((olora.b * olora.b.transpose() - Matrix<S>::Identity(3, 3)).norm() <= 1e-13);
  }
}

TEST_CASE("the orthogonal start has B A = 0 with neither 0", "[experts]") {
  const LoraBank<S> bank({.in = 9, .out = 6, .rank = 4});
  std::vector<S> theta(static_cast<std::size_t>(bank.size())), other = theta;
  init_orthogonal<S>(bank, theta, 1);
  init_orthogonal<S>(bank, other, 2);
  const Eigen::Map<Matrix<S>> a(theta.data(), 4, 9), b(theta.data() + 36, 4, 6);
  CHECK((b.transpose() * a).norm() <= 1e-14);
  CHECK((a.norm() > 0.1 && b.norm() > 0.1));
  CHECK(theta != other);
}

TEST_CASE("starts from the weight refuse what they cannot start", "[experts]") {
  const Matrix<S> w = Rng(1).matrix<S>(6, 9);
  Matrix<S> residual = Matrix<S>::Constant(6, 9, 3);
  const auto refuse = [&](const LoraConfig& config, In<S> weight, Code code,
                          const std::vector<std::string>& words) {
    const LoraBank<S> bank(config);
    std::vector<S> theta(static_cast<std::size_t>(bank.size()), 7.0);
    refused([&] { init_from_weight<S>(bank, WeightInit::pissa, weight, theta, residual); }, code, words);
    CHECK(theta == std::vector<S>(theta.size(), 7.0));
    CHECK((residual.array() == 3).all());
  };
  refuse({.in = 9, .out = 6, .experts = 2}, w, Code::config_range, {"experts", "2", "1"});
  refuse({.in = 9, .out = 6, .rank = 7}, w, Code::config_range, {"rank", "7", "6"});
  refuse({.in = 9, .out = 6, .rank = 2}, w.topRows(5), Code::shape_mismatch, {"weight", "[5, 9]", "[6, 9]"});
  refuse({.in = 9, .out = 6, .rank = 2, .alpha = -1}, w, Code::config_range, {"scale", "above 0"});
  Matrix<S> nan = w;
  nan(2, 3) = std::nan("");
  refuse({.in = 9, .out = 6, .rank = 2}, nan, Code::non_finite, {"weight"});
  const LoraBank<S> full({.in = 9, .out = 6, .rank = 6});
  std::vector<S> over(90, 7.0);
  refused([&] { init_from_weight<S>(full, WeightInit::pissa, w, over, Out<S>(over.data(), 6, 9)); },
          Code::aliased, {"residual overlaps theta"});
  CHECK(over == std::vector<S>(90, 7.0));
  std::vector<S> theta(45);
  refused([&] { init_orthogonal<S>(LoraBank<S>({.in = 9, .out = 6, .rank = 3}), theta, 1); },
          Code::config_range, {"rank", "3", "even"});
}
