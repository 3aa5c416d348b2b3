// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include "support/refusal.hpp"

#include <moxie/core/routing.hpp>

#include <array>
#include <cstdint>

using namespace moxie;

TEST_CASE("views take memory, shape and stride from row-major objects", "[core]") {
  Matrix<double> m = Matrix<double>::Random(6, 10);
  const In<double> whole = m;
  CHECK((whole.data == m.data() && whole.rows == 6 && whole.cols == 10 && whole.stride == 10));
  const In<double> block = m.block(1, 2, 3, 4);
  CHECK((block.data == &m(1, 2) && block.rows == 3 && block.cols == 4 && block.stride == 10));
  CHECK(block.row(2)[3] == m(3, 5));
  const In<double> part = block.middle_rows(1, 2);
  CHECK((part.data == &m(2, 2) && part.rows == 2 && part.stride == 10));
  const Eigen::Map<Matrix<double>, 0, Eigen::OuterStride<>> mapped(m.data(), 3, 4, Eigen::OuterStride<>(20));
  CHECK(In<double>(mapped).stride == 20);
  Out<double> out = m.topRows(2);
  out.row(1)[0] = 42;
  CHECK(m(1, 0) == 42);
  CHECK(In<double>(out).data == out.data);
  Vector<double> v = Vector<double>::Random(5);
  CHECK((In<double>(v).rows == 1 && In<double>(v).cols == 5));
  CHECK(In<double>().empty());
  CHECK(In<double>(m.data(), 0, 10).empty());
}

TEST_CASE("buffers begin on cache lines", "[core]") {
  for (const std::size_t n : {1u, 3u, 1000u}) {
    const Buffer<float> buffer(n);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64 == 0);
  }
}

TEST_CASE("every code has a name of its own, which begins the message", "[core]") {
  const std::array codes{Code::shape_mismatch, Code::config_range, Code::state_error,   Code::aliased,
                         Code::null_pointer,   Code::bad_stride,   Code::not_mergeable, Code::router_output,
                         Code::non_finite,     Code::name_taken,   Code::unknown_name,  Code::too_large};
  std::vector<std::string_view> names;
  for (const Code code : codes) {
    test::refused([&] { fail(code, "why"); }, code, {std::string(name(code)) + ": why"});
    for (const std::string_view other : names) CHECK(other != name(code));
    names.push_back(name(code));
  }
  CHECK(name(Code::shape_mismatch) == "ShapeMismatch");
  CHECK(name(Code::too_large) == "TooLarge");
}

TEST_CASE("a routing's gradient has its shape, and absent parts", "[core]") {
  Routing<double> forward, gradient;
  forward.resize(3, 4, 2, 2, true);
  CHECK((forward.rows == 6 && forward.tokens() == 3 && forward.size() == 24 && forward.chosen.size() == 12));
  CHECK((forward.noisy.size() == 24 && forward.noise_scale.size() == 24));
  gradient.zero_gradient_of(forward);
  CHECK((gradient.rows == 6 && gradient.experts == 4 && gradient.probs.empty() && gradient.noisy.empty()));
  gradient.part(&Routing<double>::probs)[5] = 3;
  CHECK(gradient.part(&Routing<double>::probs)[5] == 3);  // made once
  CHECK((gradient.probs.size() == 24 && gradient.logits.empty()));
  forward.resize(1, 4, 2, 2, false);
  CHECK((forward.noisy.empty() && forward.gates.size() == 8));
  test::refused([&] { forward.resize(Index{1} << 62, 4, 2, 2); }, Code::too_large, {"routing"});
}
