// SPDX-License-Identifier: MIT
#if __has_include(<catch2/catch_all.hpp>)
#  include <catch2/catch_all.hpp>
#else
#  include <catch2/catch.hpp>
#endif

#include <algorithm>
#include <cstdio>
#include <string>

#include "../../examples/progress.hpp"

namespace {

/// What a run of so many steps prints into a file.
std::string lines_of(long steps, double seconds_per_step = -1) {
  std::FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  {
    examples::Progress progress(steps, file);
    for (long step = 1; step <= steps; ++step)
      progress.update(step, 3.0 / double(step), 2048.0 * double(step), seconds_per_step * double(step));
  }
  std::rewind(file);
  std::string out;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) out.push_back(static_cast<char>(c));
  std::fclose(file);
  return out;
}

}  // namespace

TEST_CASE("away from a terminal progress is plain lines for every tenth of the way", "[progress]") {
  const std::string out = lines_of(300);
  CHECK(std::count(out.begin(), out.end(), '\n') == 11);  // the first step and ten tenths
  CHECK(out.find_first_of("\r\x1b") == std::string::npos);
  CHECK(out.starts_with("  1/300  loss 3.000  "));
  CHECK(out.find("\n 30/300  loss 0.100  ") != std::string::npos);
  CHECK(out.find("\n300/300  loss 0.010  ") != std::string::npos);
  CHECK(out.find(" tokens/s  ") != std::string::npos);
  CHECK(out.ends_with(" in all\n"));
  const std::string one = lines_of(1), three = lines_of(3);
  CHECK(std::count(one.begin(), one.end(), '\n') == 1);
  CHECK(std::count(three.begin(), three.end(), '\n') == 3);
}

TEST_CASE("the rate is over the seconds that the steps took, where these are given", "[progress]") {
  const std::string out = lines_of(20, 2);
  CHECK(out.starts_with(" 1/20  loss 3.000  1024 tokens/s  "));
  CHECK(out.find("\n20/20  loss 0.150  1024 tokens/s  0:00 in all\n") != std::string::npos);
}

TEST_CASE("a table stands left in its first column and right in the others", "[progress]") {
  using examples::fixed;
  examples::Table table{{"language", "before", "change"}};
  table.rows = {{"Fran\xc3\xa7"
                 "ais",
                 fixed(3.19, 3), fixed(-1.2, 3, true)},
                {},
                {"English", fixed(11.82, 3), fixed(0.715, 2, true)}};
  CHECK(table.text() ==
        "language  before  change\n"
        "------------------------\n"
        "Fran\xc3\xa7"
        "ais   3.190  -1.200\n"
        "------------------------\n"
        "English   11.820   +0.71\n");
}
