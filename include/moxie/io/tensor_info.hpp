// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/dtype.hpp>
#include <moxie/io/json.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moxie::inline MOXIE_ABI::io {

/// One tensor of a safetensors file: row-major numbers at bytes [begin, end) of its data.
struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape;  ///< outermost first; empty: one number
  std::uint64_t begin = 0, end = 0;
};

/// The limits of a header. Only the first is the reference's own; the others are far above what adapters
/// need, and keep the memory that a header can ask for below 64 MiB beside its own bytes.
inline constexpr std::uint64_t most_header_bytes = 100'000'000;
inline constexpr std::size_t most_tensors = 100'000, most_dims = 8, most_name_bytes = 4096,
                             most_names_bytes = 16 << 20,  ///< of all tensors together
    most_metadata_bytes = 1 << 20, most_metadata_texts = 10'000;

namespace detail {

/// What every tensor of a file keeps to, read or written; `refuse(code, what)` does not return.
template <class Refuse>
void check_tensor_name(std::string_view name, const Refuse& refuse) {
  if (name.empty()) refuse(Code::empty_name, "a tensor without a name");
  if (name.size() > most_name_bytes)
    refuse(Code::name_too_long, "a tensor's name of ", name.size(), " bytes, wanted at most ",
           most_name_bytes, ": ", shown(name));
  if (!is_utf8(name)) refuse(Code::bad_name, "no UTF-8 in the tensor's name " + shown(name));
  if (name == "__metadata__") refuse(Code::bad_name, "__metadata__, a name that the format itself uses");
  for (const char c : name)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      refuse(Code::bad_name, "a control character in the tensor's name " + shown(name));
}
template <class Refuse>
void check_tensor_dims(std::size_t dims, const Refuse& refuse) {
  if (dims > most_dims) refuse(Code::too_many_dims, "more than ", most_dims, " dimensions");
}
/// The bytes that the tensor's dtype and shape take.
template <class Refuse>
std::uint64_t tensor_bytes(const TensorInfo& t, const Refuse& refuse) {
  std::uint64_t count = 1, cap = 1, bits = 0;
  // Dimensions beside a zero are capped too, so that no later product can overflow.
  bool fits = true;
  for (const Index n : t.shape) {
    const auto size = static_cast<std::uint64_t>(n);
    fits = fits && n >= 0 && !__builtin_mul_overflow(cap, std::max<std::uint64_t>(size, 1), &cap);
    count *= size;
  }
  if (!fits || __builtin_mul_overflow(cap, facts(t.dtype).bits, &bits))
    refuse(Code::size_overflow, "a shape whose size in bytes is no number of 64 bits");
  bits = count * facts(t.dtype).bits;
  if (bits % 8 != 0) refuse(Code::misaligned_size, "a shape of this dtype that fills no whole byte");
  return bits / 8;
}
/// A dtype whose numbers can be computed with.
template <class Refuse>
void check_weight_dtype(Dtype dtype, const Refuse& refuse) {
  if (!is_weight(dtype))
    refuse(Code::unsupported_dtype, "dtype ", name(dtype), ", wanted F64, F32, F16 or BF16");
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI::io
