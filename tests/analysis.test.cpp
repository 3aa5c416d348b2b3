// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"
#include "support/routings.hpp"

#include <moxie/allocation.hpp>
#include <moxie/analysis.hpp>

#include <clocale>

using namespace moxie;
using namespace moxie::test;

namespace {

/// A projection of a base model.
struct Projection {
  Index in, out;
};
/// LLaMA-2-7B: q, k, v, o, gate, up, down.
const std::vector<Projection> llama{{4096, 4096},  {4096, 4096},  {4096, 4096}, {4096, 4096},
                                    {4096, 11008}, {4096, 11008}, {11008, 4096}};
constexpr Index llama_base = 6738415616;
/// T5-v1.1 XL: 72 attentions (24 in the encoder, 48 in the decoder) and 48 feed-forwards.
constexpr Index t5_base = 2849757184;

std::string percent(const ParameterCount& count) {
  const std::string line = parameter_line(count);
  return line.substr(line.rfind(' ') + 1);
}

ParameterCount mola_count(const std::vector<Index>& experts_of_layer) {
  ParameterCount count{0, llama_base};
  for (const Index experts : experts_of_layer)
    for (const Projection& p : llama)
      count.trainable +=
          mola<float>({.in = p.in, .out = p.out, .experts = experts, .top_k = std::min<Index>(2, experts)})
              .size();
  count.all += count.trainable;
  return count;
}

}  // namespace

TEST_CASE("parameter counts recompute the published ones exactly", "[analysis]") {
  SECTION("IA3 on mt0-large, PEFT's line") {
    AdapterSet<float> set;
    for (int i = 0; i < 72; ++i)
      for (const char* name : {"k", "v"}) set.add(name + std::to_string(i), ia3<float>({.features = 1024}));
    for (int i = 0; i < 48; ++i) set.add("wi_1." + std::to_string(i), ia3<float>({.features = 2816}));
    const ParameterCount count = count_parameters(set, 1229863936 - 282624);
    CHECK(parameter_line(count) ==
          "trainable params: 282,624 || all params: 1,229,863,936 || trainable%: 0.0230");
  }
  SECTION("MoLA on LLaMA-2-7B") {
    for (const auto shape : {Allocation::triangle, Allocation::inverted_triangle, Allocation::hourglass,
                             Allocation::rectangle, Allocation::middle_heavy})
      CHECK(mola_count(experts_per_layer(shape, 32)).trainable == 105635840);
    const ParameterCount mixed = mola_count(experts_per_layer(Allocation::inverted_triangle, 32));
    CHECK(percent(mixed) == "1.5435");  // 1.543 %
    const ParameterCount eights = mola_count(std::vector<Index>(32, 8));
    CHECK(eights.trainable == 169017344);
    CHECK(percent(eights) == "2.4469");  // 2.447 %
    Index experts_only = 0;
    for (const Index experts : experts_per_layer(Allocation::rectangle, 32))
      for (const Projection& p : llama)
        experts_only += LoraBank<float>({.in = p.in, .out = p.out, .experts = experts, .rank = 8}).size();
    CHECK(experts_only == 99942400);
  }
  SECTION("LoRA on LLaMA-2-7B, seven projections") {
    const auto count = [](Index rank) {
      Index n = 0;
      for (const Projection& p : llama)
        n += 32 * lora<float>({.in = p.in, .out = p.out, .rank = rank}).size();
      return n;
    };
    CHECK(count(64) == 159907840);
    CHECK(count(8) == 19988480);
    CHECK(count(80) == 199884800);
    CHECK(percent({count(8), llama_base + count(8)}) == "0.2958");
  }
  SECTION("LoRAMoE on LLaMA-2-7B, feed-forward") {
    const auto count = [](Index experts) {
      Index n = 0;
      for (std::size_t p = 4; p < 7; ++p)
        n += 32 * loramoe<float>({.in = llama[p].in, .out = llama[p].out, .experts = experts}).size();
      return n;
    };
    CHECK(count(8) == 51314688);
    CHECK(count(6) == 38486016);
    CHECK(percent({count(8), llama_base + count(8)}) == "0.7558");
  }
  SECTION("IA3, LoRA, MoV and MoLoRA on T5-XL") {
    const Index vectors =
        72 * 2 * ia3<float>({.features = 2048}).size() + 48 * ia3<float>({.features = 5120}).size();
    CHECK(vectors == 540672);
    CHECK(percent({vectors, t5_base + vectors}) == "0.0190");
    const auto lora_count = [](Index rank) {
      return 72 * 4 * lora<float>({.in = 2048, .out = 2048, .rank = rank}).size() +
             48 * (lora<float>({.in = 2048, .out = 5120, .rank = rank}).size() +
                   lora<float>({.in = 5120, .out = 2048, .rank = rank}).size());
    };
    CHECK(lora_count(4) == 7471104);
    CHECK(lora_count(4) + 48 * lora<float>({.in = 2048, .out = 5120, .rank = 4}).size() == 8847360);
    const auto mov_count = [](Index experts) {
      return 72 * 2 * mov<float>({.features = 2048, .heads = 32, .experts = experts}).size() +
             48 * mov<float>({.features = 5120, .experts = experts}).size();
    };
    CHECK(mov_count(10) == 7956480);
    CHECK(mov_count(30) == 23869440);
    const auto molora_count = [](Index experts) {
      return 72 * 4 * molora<float>({.in = 2048, .out = 2048, .experts = experts}).size() +
             48 * (molora<float>({.in = 2048, .out = 5120, .experts = experts}).size() +
                   molora<float>({.in = 5120, .out = 2048, .experts = experts}).size());
    };
    CHECK(molora_count(10) == 84049920);
    CHECK(molora_count(15) == 126074880);
  }
  SECTION("MoV-60 on T5-XXL: d 4096, ff 10240, 64 heads of 64") {
    CHECK(72 * 2 * mov<float>({.features = 4096, .heads = 64, .experts = 60}).size() +
              48 * mov<float>({.features = 10240, .experts = 60}).size() ==
          94924800);
  }
  SECTION("PEFT's documented lines") {
    const auto line = [](Index trainable, Index all) { return percent({trainable, all}); };
    CHECK(36 * (lora<float>({.in = 2048, .out = 2048, .rank = 16}).size() +
                lora<float>({.in = 2048, .out = 256, .rank = 16}).size()) ==
          3686400);
    CHECK(16 * lora<float>({.in = 2048, .out = 2048, .rank = 8}).size() == 524288);
    CHECK(24 * 2 * lora<float>({.in = 1024, .out = 1024, .rank = 16}).size() == 1572864);
    CHECK(line(1572864, 332769280) == "0.4727");
    CHECK(line(4718592, 787868672) == "0.5989");
    CHECK(line(8388608, 6666862592) == "0.1258");
    CHECK(line(15728640, 1559033600) == "1.0089");
  }
}

TEST_CASE("the parameter line groups thousands and rounds, whatever the locale", "[analysis]") {
  const std::string before = std::setlocale(LC_ALL, nullptr);
  for (const char* locale : {"C", "de_DE.UTF-8", "de_DE"}) {
    if (std::setlocale(LC_ALL, locale) == nullptr) continue;
    CHECK(parameter_line({7, 1000}) == "trainable params: 7 || all params: 1,000 || trainable%: 0.7000");
    CHECK(parameter_line({1234567, 1234567}) ==
          "trainable params: 1,234,567 || all params: 1,234,567 || trainable%: 100.0000");
    CHECK(parameter_line({0, 0}) == "trainable params: 0 || all params: 0 || trainable%: 0.0000");
  }
  std::setlocale(LC_ALL, before.c_str());
}

TEST_CASE("frozen fields do not count as trainable", "[analysis]") {
  AdapterSet<float> set;
  set.add("smoe", MoeAdapter(LoraBank<float>({.in = 4, .out = 4, .experts = 2, .rank = 1}),
                             TopKRouter<float>({.in = 4, .experts = 2, .frozen = true})));
  const ParameterCount count = count_parameters(set, 100);
  CHECK((count.trainable == 16 && count.all == 124));
}

TEMPLATE_TEST_CASE("expert differences equal the norms of the updates' differences", "[analysis]", float,
                   double) {
  using S = TestType;
  Rng rng(1);
  for (const Projection& p : {Projection{13, 9}, {3, 40}, {40, 2}}) {
    const Index in = p.in, out = p.out;
    const LoraBank<S> bank({.in = in, .out = out, .experts = 4, .ranks = {1, 3, 2, 4}, .alpha = 3});
    std::vector<S> theta(naive::at(bank.size()));
    rng.fill(theta, -1, 1);
    for (const auto scale : {UpdateScale::scaled, UpdateScale::unscaled}) {
      const Matrix<double> d = expert_differences<S>(bank, theta, scale);
      const auto update = [&](Index e) {
        Eigen::MatrixXd u = Eigen::MatrixXd::Zero(out, in);
        for (Index j = bank.begin(e); j < bank.begin(e + 1); ++j)
          for (Index o = 0; o < out; ++o)
            for (Index i = 0; i < in; ++i)
              u(o, i) += static_cast<double>(theta[naive::at(bank.total_rank() * in + j * out + o)]) *
                         static_cast<double>(theta[naive::at(j * in + i)]);
        return Eigen::MatrixXd((scale == UpdateScale::scaled ? static_cast<double>(bank.scale(e)) : 1) * u);
      };
      double mean = 0;
      for (Index i = 0; i < 4; ++i)
        for (Index j = 0; j < 4; ++j) {
          CHECK(std::abs(d(i, j) - (update(i) - update(j)).norm()) <= 1e-13 * 50);
          mean += d(i, j) / 12;
        }
      CHECK(std::abs(mean_difference(d) - mean) <= 1e-12);
    }
  }
  CHECK(mean_difference(Matrix<double>::Zero(1, 1)) == 0);
}

TEST_CASE("norm and effective rank of an update are those of the product's singular values", "[analysis]") {
  // Wide, narrow, a rank above the width, and ranks that differ.
  struct Sizes {
    Index in, out;
    std::vector<Index> ranks;
  };
  for (const Sizes& sizes : {Sizes{40, 23, {4, 1, 7}}, Sizes{5, 9, {8, 2}}, Sizes{30, 30, {20}}}) {
    const LoraBank<float> bank({.in = sizes.in,
                                .out = sizes.out,
                                .experts = std::ssize(sizes.ranks),
                                .ranks = sizes.ranks,
                                .alpha = 3});
    std::vector<float> theta(static_cast<std::size_t>(bank.size()));
    Rng(11).fill(theta, -1, 1);
    for (const UpdateScale scale : {UpdateScale::scaled, UpdateScale::unscaled}) {
      const std::vector<UpdateSize> got = update_sizes<float>(bank, theta, scale);
      REQUIRE(std::ssize(got) == bank.experts());
      for (Index e = 0; e < bank.experts(); ++e) {
        Eigen::MatrixXd product = Eigen::MatrixXd::Zero(sizes.out, sizes.in);
        for (Index j = bank.begin(e); j < bank.begin(e + 1); ++j)
          for (Index o = 0; o < sizes.out; ++o)
            for (Index i = 0; i < sizes.in; ++i)
              product(o, i) +=
                  static_cast<double>(theta[naive::at(bank.total_rank() * sizes.in + j * sizes.out + o)]) *
                  static_cast<double>(theta[naive::at(j * sizes.in + i)]);
        if (scale == UpdateScale::scaled) product *= static_cast<double>(bank.scale(e));
        const Eigen::VectorXd sigma = Eigen::JacobiSVD<Eigen::MatrixXd>(product).singularValues();
        double entropy = 0;
        for (const double s : sigma)
          if (s > 1e-12 * sigma[0]) entropy -= s / sigma.sum() * std::log(s / sigma.sum());
        const auto& size = got[static_cast<std::size_t>(e)];
        CHECK(std::abs(size.norm / product.norm() - 1) <= 1e-13);
        CHECK(std::abs(size.effective_rank / std::exp(entropy) - 1) <= 1e-11);
        CHECK(size.effective_rank <= static_cast<double>(bank.rank(e)) * (1 + 1e-12));
      }
    }
  }
}

TEST_CASE("effective ranks that are known", "[analysis]") {
  using Values = std::vector<double>;
  CHECK(std::abs(effective_rank(Values{2, 2, 2, 2}) - 4) <= 1e-14);
  CHECK(effective_rank(Values{7, 0, 0}) == 1);
  CHECK(effective_rank(Values{0, 0}) == 0);
  CHECK(effective_rank(Values{}) == 0);
  CHECK(std::abs(effective_rank(Values{3, 1}) - 4 / std::pow(3, 0.75)) <= 1e-14);

  const LoraBank<double> bank({.in = 3, .out = 4, .experts = 2, .rank = 2});
  std::vector<double> theta(static_cast<std::size_t>(bank.size()));
  Rng(3).fill(theta, -1, 1);
  std::fill(theta.begin() + 12 + 8, theta.end(), 0.0);  // the second expert's B
  theta[0] = std::numeric_limits<double>::quiet_NaN();  // the first expert's A
  const std::vector<UpdateSize> sizes = update_sizes<double>(bank, theta);
  CHECK((std::isnan(sizes[0].norm) && std::isnan(sizes[0].effective_rank)));
  CHECK((sizes[1].norm == 0 && sizes[1].effective_rank == 0));
  refused([&] { update_sizes<double>(bank, std::span<const double>(theta).first(27)); }, Code::shape_mismatch,
          {"27", "28"});
}

TEST_CASE("experts with one A are told as experts that each have it", "[analysis]") {
  const HydraBank<double> hydra({.in = 6, .out = 5, .experts = 3, .rank = 2, .alpha = 5});
  std::vector<double> theta(static_cast<std::size_t>(hydra.size()));
  Rng(9).fill(theta, -1, 1);
  const auto [bank, own] = with_own_a<double>(hydra, theta);
  const Eigen::Map<const Matrix<double>> a(theta.data(), 2, 6), b(theta.data() + 12, 6, 5);
  const auto update = [&](Index e) { return Eigen::MatrixXd(2.5 * b.middleRows(2 * e, 2).transpose() * a); };
  const auto sizes = update_sizes<double>(bank, own);
  const Matrix<double> differences = expert_differences<double>(bank, own);
  for (Index e = 0; e < 3; ++e) {
    CHECK(std::abs(sizes[static_cast<std::size_t>(e)].norm - update(e).norm()) <= 1e-13);
    CHECK(std::abs(differences(e, 0) - (update(e) - update(0)).norm()) <= 1e-13);
  }
  refused([&] { with_own_a<double>(hydra, std::span<const double>(theta).first(41)); }, Code::shape_mismatch);
}

TEST_CASE("vectors differ, and change, by their distance", "[analysis]") {
  for (const Index heads : {1, 2}) {
    const Ia3Bank<double> bank({.features = 4, .heads = heads, .experts = 2});
    // [heads, E, d / heads]: the second expert's last number is 4 from the first's, and 3 from 1.
    std::vector<double> theta(8, 1.0);
    theta[7] = 4;
    theta[heads == 1 ? 3 : 5] = 0;
    const Matrix<double> d = expert_differences<double>(bank, theta);
    CHECK((d(0, 1) == 4 && d(1, 0) == 4 && d(0, 0) == 0));
    const std::vector<UpdateSize> sizes = update_sizes<double>(bank, theta);
    CHECK((sizes[0].norm == 1 && sizes[1].norm == 3));
    CHECK((sizes[0].effective_rank == 1 && sizes[1].effective_rank == 1));
    refused([&] { expert_differences<double>(bank, std::span<const double>(theta).first(7)); },
            Code::shape_mismatch);
    refused([&] { update_sizes<double>(bank, std::span<const double>(theta).first(7)); },
            Code::shape_mismatch);
  }
}

TEST_CASE("expert differences stay accurate when experts nearly agree", "[analysis]") {
  // Traces of Gram matrices would lose everything below 1e-8 of the updates.
  Rng rng(2);
  const LoraBank<double> bank({.in = 50, .out = 30, .experts = 2, .rank = 4, .alpha = 4});
  std::vector<double> theta(naive::at(bank.size()));
  rng.fill(theta, -1, 1);
  const auto expert = [&](Index e, Index j, Index i) -> double& {
    return theta[naive::at((4 * e + j) * 50 + i)];
  };
  for (Index j = 0; j < 4; ++j)
    for (Index i = 0; i < 50; ++i) expert(1, j, i) = expert(0, j, i);
  const auto b = [&](Index e, Index j) { return theta.data() + 8 * 50 + (4 * e + j) * 30; };
  for (Index j = 0; j < 4; ++j) std::copy_n(b(0, j), 30, b(1, j));
  CHECK(expert_differences<double>(bank, theta)(0, 1) <= 1e-13);
  constexpr double apart = 1e-10;
  b(1, 2)[7] += apart;
  double row = 0;
  for (Index i = 0; i < 50; ++i) row += expert(0, 2, i) * expert(0, 2, i);
  const double actual = (b(1, 2)[7] - b(0, 2)[7]) * std::sqrt(row);
  CHECK(std::abs(expert_differences<double>(bank, theta)(0, 1) / actual - 1) < 1e-3);
}

TEST_CASE("routing statistics are means over the rows of each task", "[analysis]") {
  const Routing<double> r = route_logits<double>(golden_logits, 4, 2);
  RoutingStatistics statistics(3, 4);
  statistics.add(r, std::vector<int>{0, 1, 0, -1});
  CHECK((statistics.rows(0) == 2 && statistics.rows(1) == 1 && statistics.rows(2) == 0));
  CHECK(std::abs(statistics.mean_probability(0, 0) - (r.probs[0] + r.probs[8]) / 2) <= 1e-15);
  CHECK(statistics.share_selected(0, 0) == 0.5);
  CHECK(statistics.share_selected(1, 2) == 1);
  CHECK(statistics.mean_probability(2, 0) == 0);
  double entropy = 0;
  for (std::size_t e = 4; e < 8; ++e) entropy -= r.probs[e] * std::log(r.probs[e]);
  CHECK(std::abs(statistics.mean_entropy(1) - entropy) <= 1e-15);
  CHECK(statistics.never_used().empty());
  RoutingStatistics single(1, 4);
  single.add(r, std::vector<int>{0, -1, -1, -1});
  CHECK(single.never_used() == std::vector<Index>{2, 3});
  // Rows of heads belong to their token's task.
  Rng rng(3);
  RoutingStatistics heads(2, 3);
  heads.add(random_routing<float>(rng, 4, 3, 1, 5), std::vector<int>{0, 1, 1, 1});
  CHECK((heads.rows(0) == 5 && heads.rows(1) == 15));
}

TEST_CASE("routing statistics refuse what does not fit and then count nothing", "[analysis]") {
  const Routing<double> r = route_logits<double>(golden_logits, 4, 2);
  RoutingStatistics statistics(2, 4), other(2, 3);
  refused(
      [&] {
        statistics.add(r, std::vector<int>{0, 1, 0});
      },
      Code::shape_mismatch, {"task_of_token", "3", "4"});
  refused([&] { statistics.add(r, std::vector<int>{0, 1, 0, 2}); }, Code::config_range, {"task", "2"});
  refused([&] { other.add(r, std::vector<int>{0, 1, 0, 1}); }, Code::shape_mismatch, {"4 experts", "3"});
  CHECK((statistics.rows(0) == 0 && other.rows(0) == 0));
  refused([&] { (void)statistics.mean_probability(2, 0); }, Code::config_range, {"task", "2", "0 to 1"});
  refused([&] { (void)statistics.share_selected(0, 4); }, Code::config_range, {"expert", "4", "0 to 3"});
  refused([&] { (void)statistics.rows(-1); }, Code::config_range, {"task", "-1"});
  Routing<double> gradient;
  gradient.zero_gradient_of(r);
  refused([&] { statistics.add(gradient, std::vector<int>(4)); }, Code::shape_mismatch,
          {"routing", "0", "16"});
  refused([] { RoutingStatistics(0, 4); }, Code::config_range, {"tasks"});
  refused([] { RoutingStatistics(1, 0); }, Code::config_range, {"experts"});
}
