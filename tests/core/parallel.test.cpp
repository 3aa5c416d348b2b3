// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"

#include <moxie/core/parallel.hpp>
#include <moxie/core/params.hpp>

#include <atomic>
#include <stdexcept>

using namespace moxie;

TEST_CASE("every block is computed once, by a thread of the team", "[core]") {
  for (const int threads : {1, 2, 3, 8})
    for (const Index blocks : {0, 1, 2, 7, 100}) {
      std::vector<std::atomic<int>> visits(static_cast<std::size_t>(blocks));
      std::atomic<bool> in_team = true;
      for_blocks(blocks, threads, [&](Index block, int thread) {
        visits[static_cast<std::size_t>(block)] += 1;
        if (thread < 0 || thread >= threads) in_team = false;
      });
      CHECK(in_team);
      for (const auto& n : visits) CHECK(n == 1);
    }
}

TEST_CASE("of several exceptions the lowest block's leaves the team", "[core]") {
  for (const int threads : {1, 2, 4})
    for (int round = 0; round < 20; ++round) {
      std::string got;
      try {
        for_blocks(50, threads, [](Index block, int) {
          if (block % 7 == 3) throw std::runtime_error(std::to_string(block));
        });
      } catch (const std::runtime_error& error) {
        got = error.what();
      }
      CHECK(got == "3");
    }
}

TEST_CASE("a team is woken for enough work and not below", "[core]") {
  CHECK(team(1, team_work, 3) == 3);
  CHECK(team(1, team_work - 1, 3) == 1);
  CHECK(team(1000, team_work / 1000, 3) == 1);
  CHECK(team(1000, team_work / 1000 + 1, 3) == 3);
  CHECK(team(0, team_work, 3) == 1);
  CHECK(team(std::numeric_limits<Index>::max(), 1, 3) == 3);
}

TEST_CASE("tiles cover all tokens in whole register blocks, as many for each thread", "[core]") {
  for (const Index most : {32, 48, 64, 256})
    for (const int threads : {1, 2, 3, 8})
      for (Index tokens = 1; tokens < 700; ++tokens) {
        const Index size = tile_size(tokens, most, threads), tiles = (tokens + size - 1) / size;
        REQUIRE(size % 4 == 0);
        REQUIRE(size >= 4);
        REQUIRE(size <= most);
        // Every thread has one where there are blocks for all of them.
        if (tokens % (4 * threads) == 0 && tokens <= 32 * threads) REQUIRE(tiles == threads);
      }
  CHECK(tile_size(192, 64, 2) == 48);  // not three tiles of 64
  CHECK(tile_size(512, 64, 1) == 64);
  constexpr Index most = std::numeric_limits<Index>::max();
  CHECK(most_tile<float>(1536, 1) == 64);
  CHECK(most_tile<float>(8192, 1 << 20) == 32);
  CHECK(most_tile<double>(most, 1) == 32);
  CHECK(most_tile<float>(8192, (1 << 20) + 1) == 256);
  CHECK(most_tile<float>(0, most) == 256);
}

TEST_CASE("a cursor cuts a vector into consecutive tensors", "[core]") {
  std::vector<double> theta{0, 1, 2, 3, 4, 5};
  detail::Cursor<double> cursor(theta);
  CHECK(cursor.take(2).data() == theta.data());
  CHECK(cursor.take(0).empty());
  CHECK(cursor.take(4)[0] == 2);
}

TEST_CASE("sizes of fields multiply and add up", "[core]") {
  const std::vector<Field> fields{{.name = "a", .shape = {2, 3}}, {.name = "b", .shape = {4}}, {.name = "c"}};
  CHECK(fields[0].size() == 6);
  CHECK(total_size(fields) == 11);
}

TEST_CASE("a product that does not fit is refused by name", "[core]") {
  CHECK(detail::checked_product("x", 0, std::numeric_limits<Index>::max()) == 0);
  CHECK(detail::checked_product("x", 3, 4) == 12);
  test::refused([] { detail::checked_product("the thing", Index{1} << 40, Index{1} << 40); }, Code::too_large,
                {"the thing", "1099511627776"});
}
