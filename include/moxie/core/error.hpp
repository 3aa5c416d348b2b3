// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/types.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace moxie::inline MOXIE_ABI {

/// Stable reason of a refusal; `name(code)` is its spelling in messages.
enum class Code {
  shape_mismatch,  ///< sizes of arguments do not fit each other or the part
  config_range,    ///< a setting lies outside its range
  state_error,     ///< called in the wrong order, or with another call's cache
  aliased,         ///< an output overlaps an input where it must not
  null_pointer,    ///< a view of positive size without memory
  bad_stride,      ///< rows closer together than they are long
  not_mergeable,   ///< the update depends on the token, so no single matrix equals it
  router_output,   ///< a routing made elsewhere is not a routing
  non_finite,      ///< NaN or infinity where a number is needed
  name_taken,      ///< a module of that name exists
  unknown_name,    ///< no module of that name
  too_large,       ///< a size would overflow
  // Files (moxie::io).
  io_open,
  io_read,
  io_write,
  io_no_space,
  io_changed,  ///< another size at the end of reading than at its start
  not_regular_file,
  not_safetensors,  ///< a file of another kind
  header_too_small,
  header_too_large,
  invalid_header_length,
  header_not_object,
  invalid_utf8,
  json_syntax,
  json_trailing,
  json_depth,
  json_escape,
  duplicate_key,
  integer_range,
  empty_name,
  bad_name,
  name_too_long,
  too_many_tensors,
  bad_tensor_entry,
  missing_field,
  unknown_field,
  unknown_dtype,
  unsupported_dtype,
  misaligned_size,
  bad_shape,
  too_many_dims,
  size_overflow,
  size_mismatch,
  bad_offsets,
  offset_range,
  offset_hole,
  offset_overlap,
  file_truncated,
  trailing_data,
  bad_metadata,
  version_too_new,
  checksum_mismatch,
  value_range,  ///< a number too large for the type it is wanted in
  missing_tensor,
  unexpected_tensor,
  nothing_matched,
  rank_mismatch,
  dtype_mismatch,
  expert_index,  ///< experts that are not numbered 0 to E - 1, or not as many as is said
  config_type,
  config_mismatch,  ///< two places say different things
  unknown_config_key,
  unsupported_option,  ///< known, changes the result, and is not built
  pattern_syntax,
  pattern_unused,
  adapter_kind,   ///< an adapter of another kind
  pair_mismatch,  ///< a folder's two files are not from one save
  // Files of torch.save.
  not_torch_file,  ///< a file of another kind
  unsupported_archive,
  bad_archive,
  unsupported_pickle,  ///< it asks for more than tensors need; nothing of it is run
  bad_pickle,
  not_state_dict,
};

inline std::string_view name(Code code) {
  constexpr std::string_view names[] = {"ShapeMismatch",    "ConfigRange",
                                        "StateError",       "Aliased",
                                        "NullPointer",      "BadStride",
                                        "NotMergeable",     "RouterOutput",
                                        "NonFinite",        "NameTaken",
                                        "UnknownName",      "TooLarge",
                                        "IoOpen",           "IoRead",
                                        "IoWrite",          "IoNoSpace",
                                        "IoChanged",        "NotRegularFile",
                                        "NotSafetensors",   "HeaderTooSmall",
                                        "HeaderTooLarge",   "InvalidHeaderLength",
                                        "HeaderNotObject",  "InvalidUtf8",
                                        "JsonSyntax",       "JsonTrailing",
                                        "JsonDepth",        "JsonEscape",
                                        "DuplicateKey",     "IntegerRange",
                                        "EmptyName",        "BadName",
                                        "NameTooLong",      "TooManyTensors",
                                        "BadTensorEntry",   "MissingField",
                                        "UnknownField",     "UnknownDtype",
                                        "UnsupportedDtype", "MisalignedSize",
                                        "BadShape",         "TooManyDims",
                                        "SizeOverflow",     "SizeMismatch",
                                        "BadOffsets",       "OffsetRange",
                                        "OffsetHole",       "OffsetOverlap",
                                        "FileTruncated",    "TrailingData",
                                        "BadMetadata",      "VersionTooNew",
                                        "ChecksumMismatch", "ValueRange",
                                        "MissingTensor",    "UnexpectedTensor",
                                        "NothingMatched",   "RankMismatch",
                                        "DtypeMismatch",    "ExpertIndex",
                                        "ConfigType",       "ConfigMismatch",
                                        "UnknownConfigKey", "UnsupportedOption",
                                        "PatternSyntax",    "PatternUnused",
                                        "AdapterKind",      "PairMismatch",
                                        "NotTorchFile",     "UnsupportedArchive",
                                        "BadArchive",       "UnsupportedPickle",
                                        "BadPickle",        "NotStateDict"};
  static_assert(std::size(names) == static_cast<std::size_t>(Code::not_state_dict) + 1);
  return names[static_cast<std::size_t>(code)];
}

/// What every refused call throws; nothing has been changed when it is thrown.
class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& text)
      : std::runtime_error(std::string(name(code)).append(": ").append(text)), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

/// Called in place of `throw` where exceptions are switched off; must not return.
using ErrorHandler = void (*)(Code code, const char* text);

/// The replaceable handler. It prints and aborts unless the program sets its own before the first call.
inline ErrorHandler& error_handler() {
  static ErrorHandler handler = [](Code, const char* text) {
    std::fprintf(stderr, "moxie: %s\n", text);
    std::abort();
  };
  return handler;
}

/// Refuses: throws Error, or calls the handler where exceptions are off.
[[noreturn]] inline void fail(Code code, const std::string& text) {
#if defined(__cpp_exceptions)
  throw Error(code, text);
#else
  error_handler()(code, std::string(name(code)).append(": ").append(text).c_str());
  std::abort();
#endif
}

namespace detail {

/// A number as text, the same in every locale.
template <class T>
std::string text(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    char buffer[40];
    return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::general, 6).ptr};
  } else {
    return std::to_string(value);
  }
}
/// One text of several. (Chains of operator+ set off false alarms of GCC 12 in the program that includes us.)
inline std::string join(std::initializer_list<std::string_view> parts) {
  std::string all;
  for (const std::string_view part : parts) all.append(part);
  return all;
}
inline std::string shape_text(Index rows, Index cols) {
  return join({"[", text(rows), ", ", text(cols), "]"});
}

/// A view has memory, a sane stride, and the wanted shape; -1 accepts any size.
template <class View>
void expect_shape(std::string_view argument, const View& view, Index rows, Index cols) {
  const bool fits = (rows < 0 || view.rows == rows) && (cols < 0 || view.cols == cols);
  if (!fits || view.rows < 0 || view.cols < 0) {
    const auto wanted = [](Index n) { return n < 0 ? std::string("any") : text(n); };
    fail(Code::shape_mismatch, join({argument, " is ", shape_text(view.rows, view.cols), ", wanted [",
                                     wanted(rows), ", ", wanted(cols), "]"}));
  }
  if (view.empty()) return;
  if (view.data == nullptr) fail(Code::null_pointer, join({argument, " has a shape but no memory"}));
  constexpr Index most = std::numeric_limits<Index>::max() / static_cast<Index>(sizeof(*view.data));
  if (view.rows > most / view.cols)
    fail(Code::too_large,
         join({argument, " is ", shape_text(view.rows, view.cols), ", which does not fit in memory"}));
  if (view.rows == 1) return;
  if (view.stride > most / view.rows)
    fail(Code::bad_stride, join({argument, " has stride ", text(view.stride), ", wanted at most ",
                                 text(most / view.rows), " for its ", text(view.rows), " rows"}));
  if (view.stride < view.cols)
    fail(Code::bad_stride, join({argument, " has stride ", text(view.stride), ", wanted at least ",
                                 text(view.cols), " (its columns)"}));
}

inline void expect_size(std::string_view argument, std::size_t got, Index wanted) {
  if (got != static_cast<std::size_t>(wanted))
    fail(Code::shape_mismatch, join({argument, " has ", text(got), " numbers, wanted ", text(wanted)}));
}

inline void expect_range(bool inside, std::string_view setting, double got, std::string_view wanted) {
  if (!inside) fail(Code::config_range, join({setting, " is ", text(got), ", wanted ", wanted}));
}

/// True where a setting is a finite number in the scalar S too.
template <class S>
bool finite_as(double setting) {
  return std::abs(setting) <= static_cast<double>(std::numeric_limits<S>::max());
}

/// True where two views of one shape are the same memory.
template <class A, class B>
bool same_place(const A& a, const B& b) {
  return a.data == b.data && (a.stride == b.stride || a.rows <= 1) && !a.empty();
}

/// True where the memory of two views overlaps. Blocks of columns side by side in one matrix do not.
template <class A, class B>
bool overlap(const A& a, const B& b) {
  if (a.empty() || b.empty()) return false;
  const auto begin = [](const auto& v) { return reinterpret_cast<std::uintptr_t>(v.data); };
  const auto end = [](const auto& v) {
    return reinterpret_cast<std::uintptr_t>(v.data + (v.rows - 1) * v.stride + v.cols);
  };
  if (begin(a) >= end(b) || begin(b) >= end(a)) return false;
  if (a.rows > 1 && b.rows > 1 && a.stride != b.stride) return true;
  if (a.rows <= 1 && b.rows <= 1) return true;
  const auto bytes = [&](Index n) { return n * static_cast<Index>(sizeof(*a.data)); };
  const Index stride = bytes(a.rows > 1 ? a.stride : b.stride);
  const Index between = (static_cast<Index>(begin(b) - begin(a)) % stride + stride) % stride;
  return between < bytes(a.cols) || between + bytes(b.cols) > stride;
}

/// Refuses a view that overlaps one of the others, given as name and view in turn.
template <class A, class B, class... More>
void expect_apart(std::string_view a_name, const A& a, std::string_view b_name, const B& b,
                  const More&... more) {
  if (overlap(a, b)) fail(Code::aliased, join({a_name, " overlaps ", b_name, ", wanted memory of its own"}));
  if constexpr (sizeof...(more) > 0) expect_apart(a_name, a, more...);
}

template <class S>
In<std::remove_const_t<S>> as_view(std::span<S> v) {
  return {v.data(), v.empty() ? 0 : 1, static_cast<Index>(v.size())};
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
