// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"

#include <moxie/allocation.hpp>

#include <limits>
#include <numeric>

using namespace moxie;
using List = std::vector<Index>;

namespace {

Index total(const List& list) { return std::accumulate(list.begin(), list.end(), Index{0}); }

List groups(const std::vector<std::pair<Index, Index>>& runs) {
  List list;
  for (const auto& [experts, layers] : runs)
    list.insert(list.end(), static_cast<std::size_t>(layers), experts);
  return list;
}

}  // namespace

TEST_CASE("MoLA's shapes over 32 layers are groups of eight, 160 experts in all", "[allocation]") {
  CHECK(experts_per_layer(Allocation::triangle, 32) == groups({{8, 8}, {6, 8}, {4, 8}, {2, 8}}));
  CHECK(experts_per_layer(Allocation::inverted_triangle, 32) == groups({{2, 8}, {4, 8}, {6, 8}, {8, 8}}));
  CHECK(experts_per_layer(Allocation::hourglass, 32) == groups({{8, 8}, {2, 16}, {8, 8}}));
  CHECK(experts_per_layer(Allocation::rectangle, 32) == groups({{5, 32}}));
  CHECK(experts_per_layer(Allocation::middle_heavy, 32) == groups({{2, 8}, {8, 16}, {2, 8}}));
  for (const auto shape : {Allocation::triangle, Allocation::inverted_triangle, Allocation::hourglass,
                           Allocation::rectangle, Allocation::middle_heavy})
    CHECK(total(experts_per_layer(shape, 32)) == 160);
}

TEST_CASE("layer l of any number of layers takes group floor(4 l / L)", "[allocation]") {
  CHECK(experts_per_layer(Allocation::inverted_triangle, 1) == List{2});
  CHECK(experts_per_layer(Allocation::inverted_triangle, 2) == List{2, 6});
  CHECK(experts_per_layer(Allocation::inverted_triangle, 3) == List{2, 4, 6});
  CHECK(experts_per_layer(Allocation::inverted_triangle, 5) == List{2, 2, 4, 6, 8});
  CHECK(experts_per_layer(Allocation::inverted_triangle, 6) == List{2, 2, 4, 6, 6, 8});
  for (Index layers = 1; layers < 40; ++layers) {
    const List list = experts_per_layer(Allocation::triangle, layers);
    REQUIRE(std::ssize(list) == layers);
    for (Index l = 0; l < layers; ++l)
      CHECK(list[static_cast<std::size_t>(l)] ==
            std::array<Index, 4>{8, 6, 4, 2}[static_cast<std::size_t>(4 * l / layers)]);
  }
}

TEST_CASE("a list is per layer or per group", "[allocation]") {
  CHECK(experts_per_layer(List{3, 1, 2}, 3) == List{3, 1, 2});
  CHECK(experts_per_layer(List{3, 1}, 5) == List{3, 3, 3, 1, 1});
  CHECK(experts_per_layer(List{7}, 4) == List{7, 7, 7, 7});
  const Code range = Code::config_range;
  test::refused([] { experts_per_layer(List{}, 4); }, range, {"list", "0"});
  test::refused([] { experts_per_layer(List{1, 2, 3}, 2); }, range, {"list", "3", "2"});
  test::refused([] { experts_per_layer(List{1, 0}, 2); }, range, {"experts of a layer", "0"});
  test::refused([] { experts_per_layer(Allocation::triangle, 0); }, range, {"layers", "0"});
  test::refused([] { experts_per_layer(List{1}, 0); }, range, {"layers", "0"});
}

TEST_CASE("a total is spread by largest remainder, at least one a layer", "[allocation]") {
  using W = std::vector<double>;
  CHECK(spread_experts(10, W{1, 1, 1}) == List{4, 3, 3});          // equal remainders: the lower layer
  CHECK(spread_experts(7, W{1, 2, 4}) == List{1, 2, 4});           // exact
  CHECK(spread_experts(10, W{0.45, 0.3, 0.25}) == List{5, 3, 2});  // 4.5, 3, 2.5: the lower of the two halves
  CHECK(spread_experts(4, W{0, 0, 1}) == List{1, 1, 2});
  CHECK(spread_experts(3, W{5, 1, 100}) == List{1, 1, 1});
  CHECK(spread_experts(160, Allocation::inverted_triangle, 32) ==
        experts_per_layer(Allocation::inverted_triangle, 32));
  CHECK(spread_experts(80, Allocation::triangle, 32) == groups({{4, 8}, {3, 8}, {2, 8}, {1, 8}}));
  for (Index layers = 1; layers < 20; ++layers)
    for (Index experts = layers; experts < 5 * layers; ++experts)
      for (const auto shape : {Allocation::triangle, Allocation::middle_heavy}) {
        const List list = spread_experts(experts, shape, layers);
        REQUIRE(total(list) == experts);
        REQUIRE(*std::min_element(list.begin(), list.end()) >= 1);
        // No layer is an expert or more away from its share, but for the one that it must have.
        double sum = 0;
        const List shares = experts_per_layer(shape, layers);
        for (const Index s : shares) sum += static_cast<double>(s);
        for (std::size_t l = 0; l < list.size(); ++l) {
          const double quota = static_cast<double>(experts) * static_cast<double>(shares[l]) / sum;
          CHECK((list[l] == 1 || static_cast<double>(list[l]) < quota + 1));
        }
      }
  const Code range = Code::config_range;
  test::refused([] { spread_experts(2, W{1, 1, 1}); }, range, {"total", "2", "3"});
  test::refused([] { spread_experts(5, W{1, -1}); }, range, {"weight", "-1"});
  test::refused([] { spread_experts(5, W{1, std::nan("")}); }, range, {"weight"});
  test::refused([] { spread_experts(std::numeric_limits<Index>::max(), W{1}); }, range, {"total", "2^53"});
  test::refused([] { spread_experts(5, W{0, 0}); }, range, {"sum"});
  test::refused([] { spread_experts(5, W{}); }, range, {"layers"});
}

TEST_CASE("a k that some layer cannot serve is refused with the layer's number", "[allocation]") {
  CHECK_NOTHROW(expect_top_k(List{2, 4, 8}, 2));
  test::refused([] { expect_top_k(List{4, 2, 8}, 3); }, Code::config_range, {"layer 1", "3", "1 to 2"});
  test::refused([] { expect_top_k(List{4}, 0); }, Code::config_range, {"layer 0", "0"});
}
