// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <span>

namespace moxie::inline MOXIE_ABI::io {

/// How a tensor is stored: safetensors' own list. Adapters are of the four floating-point types that can be
/// read and written here, the others are only listed.
enum class Dtype {
  f64,
  f32,
  f16,
  bf16,
  boolean,
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  c64,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f6_e2m3,
  f6_e3m2,
  f4
};

struct DtypeFacts {
  std::string_view name;
  std::uint64_t bits;
};
inline constexpr DtypeFacts dtype_facts[] = {
    {"F64", 64},        {"F32", 32},    {"F16", 16},    {"BF16", 16},   {"BOOL", 8},    {"U8", 8},
    {"I8", 8},          {"U16", 16},    {"I16", 16},    {"U32", 32},    {"I32", 32},    {"U64", 64},
    {"I64", 64},        {"C64", 64},    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}};
constexpr const DtypeFacts& facts(Dtype dtype) { return dtype_facts[static_cast<std::size_t>(dtype)]; }
constexpr std::string_view name(Dtype dtype) { return facts(dtype).name; }
inline std::optional<Dtype> dtype_of(std::string_view name) {
  for (std::size_t i = 0; i < std::size(dtype_facts); ++i)
    if (dtype_facts[i].name == name) return static_cast<Dtype>(i);
  return std::nullopt;
}
constexpr bool is_weight(Dtype dtype) { return dtype <= Dtype::bf16; }

namespace detail {

/// A stored number as double, whatever the alignment; files are little-endian.
template <class T>
T load_little(const char* p) {
  char bytes[sizeof(T)];
  for (std::size_t i = 0; i < sizeof(T); ++i)
    bytes[i] = p[std::endian::native == std::endian::little ? i : sizeof(T) - 1 - i];
  return std::bit_cast<T>(bytes);
}
template <class T>
void store_little(T value, char* p) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  for (std::size_t i = 0; i < sizeof(T); ++i)
    p[i] = bytes[std::endian::native == std::endian::little ? i : sizeof(T) - 1 - i];
}

/// The number stored at p; exact in double, and in float but for F64.
inline double load_number(Dtype dtype, const char* p) {
  switch (dtype) {
    case Dtype::f64:
      return load_little<double>(p);
    case Dtype::f32:
      return static_cast<double>(load_little<float>(p));
    case Dtype::f16:
      return static_cast<double>(
          static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(load_little<std::uint16_t>(p))));
    default:
      return static_cast<double>(
          static_cast<float>(Eigen::numext::bit_cast<Eigen::bfloat16>(load_little<std::uint16_t>(p))));
  }
}

/// Rounds to nearest even; false where a finite number has no finite neighbour.
inline bool store_number(double number, Dtype dtype, char* p) {
  if (dtype == Dtype::f64) {
    store_little(number, p);
    return true;
  }
  float single = static_cast<float>(number);
  if (dtype == Dtype::f32) {
    store_little(single, p);
    return std::isfinite(single);
  }
  // On the way to 16 bits float rounds to odd, so that the number is rounded to nearest once.
  if (std::isfinite(single) && static_cast<double>(single) != number) {
    auto bits = std::bit_cast<std::uint32_t>(single);
    if (std::abs(static_cast<double>(single)) > std::abs(number)) --bits;
    single = std::bit_cast<float>(bits | 1u);
  }
  if (dtype == Dtype::f16) {
    const Eigen::half half(single);
    store_little(Eigen::numext::bit_cast<std::uint16_t>(half), p);
    return (Eigen::numext::isfinite)(half);
  }
  const Eigen::bfloat16 brain(single);
  store_little(Eigen::numext::bit_cast<std::uint16_t>(brain), p);
  return (Eigen::numext::isfinite)(brain);
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI::io
