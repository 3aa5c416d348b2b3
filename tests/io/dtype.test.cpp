// SPDX-License-Identifier: MIT
#include "support/catch.hpp"

#include <moxie/io/dtype.hpp>

#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>

using namespace moxie;
using namespace moxie::io;

namespace {

double load(Dtype dtype, std::uint64_t bits) {
  char stored[8];
  io::detail::store_little(bits, stored);
  return io::detail::load_number(dtype, stored);
}
/// The bits a number is stored as; nothing where it does not fit.
std::optional<std::uint64_t> store(Dtype dtype, double number) {
  char stored[8] = {};
  if (!io::detail::store_number(number, dtype, stored)) return std::nullopt;
  return io::detail::load_little<std::uint64_t>(stored);
}

}  // namespace

TEST_CASE("every dtype is found by its name, and nothing else is", "[io]") {
  for (const DtypeFacts& facts : dtype_facts) {
    const std::optional<Dtype> dtype = dtype_of(facts.name);
    REQUIRE(dtype.has_value());
    CHECK(name(*dtype) == facts.name);
  }
  CHECK_FALSE(dtype_of("f32").has_value());
  CHECK_FALSE(dtype_of("").has_value());
  CHECK_FALSE(dtype_of(std::string_view("F32\0", 4)).has_value());
  CHECK(is_weight(Dtype::bf16));
  CHECK_FALSE(is_weight(Dtype::boolean));
  CHECK(facts(Dtype::f4).bits == 4);
}

TEST_CASE("numbers have the bits that IEEE 754 and bfloat16 give them", "[io]") {
  const std::tuple<Dtype, std::uint64_t, double> known[] = {{Dtype::f64, 0x3ff8000000000000, 1.5},
                                                            {Dtype::f64, 0xc000000000000000, -2},
                                                            {Dtype::f32, 0x3fc00000, 1.5},
                                                            {Dtype::f32, 0x7f7fffff, 0x1.fffffep127},
                                                            {Dtype::f32, 0x00000001, 0x1p-149},
                                                            {Dtype::f16, 0x3e00, 1.5},
                                                            {Dtype::f16, 0x7bff, 65504},
                                                            {Dtype::f16, 0x0001, 0x1p-24},
                                                            {Dtype::bf16, 0x3fc0, 1.5},
                                                            {Dtype::bf16, 0x7f7f, 0x1.fep127},
                                                            {Dtype::bf16, 0x0001, 0x1p-133},
                                                            {Dtype::bf16, 0xc000, -2}};
  for (const auto& [dtype, bits, number] : known) {
    INFO(name(dtype) << " " << number);
    CHECK(load(dtype, bits) == number);
    CHECK(store(dtype, number) == bits);
  }
}

TEST_CASE("little-endian whatever the machine, aligned or not", "[io]") {
  const char bytes[] = "\x00\x01\x02\x03\x04";
  CHECK(io::detail::load_little<std::uint32_t>(bytes + 1) == 0x04030201);
  char stored[4];
  io::detail::store_little<std::uint32_t>(0x04030201, stored);
  CHECK(std::memcmp(stored, bytes + 1, 4) == 0);
}

TEST_CASE("what has no finite neighbour is not stored", "[io]") {
  CHECK_FALSE(store(Dtype::f16, 65520).has_value());  // half way to 2^16, which even would round up
  CHECK(store(Dtype::f16, std::nextafter(65520., 0)) == 0x7bff);
  CHECK_FALSE(store(Dtype::bf16, 0x1.ffp127).has_value());
  CHECK(store(Dtype::bf16, std::nextafter(0x1.ffp127, 0)) == 0x7f7f);
  CHECK_FALSE(store(Dtype::f32, -1e39).has_value());
  CHECK(store(Dtype::f64, -1e308).has_value());
}

TEST_CASE("16-bit storage gives back every one of its numbers, and rounds others to nearest once", "[io]") {
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
    for (std::uint64_t bits = 0; bits < 1u << 16; ++bits)
      if (std::isfinite(load(dtype, bits))) REQUIRE(store(dtype, load(dtype, bits)) == bits);
    // The middle between two neighbours goes to the even one, everything else to the nearer one.
    for (std::uint64_t bits = 0; std::isfinite(load(dtype, bits + 1)); ++bits) {
      const double below = load(dtype, bits), above = load(dtype, bits + 1), middle = (below + above) / 2;
      REQUIRE(store(dtype, middle) == (bits % 2 == 0 ? bits : bits + 1));
      REQUIRE(store(dtype, std::nextafter(middle, below)) == bits);
      REQUIRE(store(dtype, std::nextafter(middle, above)) == bits + 1);
      REQUIRE(store(dtype, -std::nextafter(middle, above)) == (bits + 1) + (1u << 15));
    }
  }
}
