// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/code.hpp>
#include <moxie/core/types.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace moxie::inline MOXIE_ABI {

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
/// One text of texts and numbers. (Chains of operator+ set off false alarms of GCC 12 in the program that
/// includes us.)
template <class... Parts>
std::string join(const Parts&... parts) {
  std::string all;
  const auto add = [&](const auto& part) {
    using Part = std::remove_cvref_t<decltype(part)>;
    static_assert(!std::is_same_v<Part, char>);
    if constexpr (std::is_arithmetic_v<Part>)
      all.append(text(part));
    else
      all.append(part);
  };
  (add(parts), ...);
  return all;
}
inline std::string shape_text(Index rows, Index cols) { return join("[", rows, ", ", cols, "]"); }

/// A view has memory, a sane stride, and the wanted shape; -1 accepts any size.
template <class View>
void expect_shape(std::string_view argument, const View& view, Index rows, Index cols) {
  const bool fits = (rows < 0 || view.rows == rows) && (cols < 0 || view.cols == cols);
  if (!fits || view.rows < 0 || view.cols < 0) {
    const auto wanted = [](Index n) { return n < 0 ? std::string("any") : text(n); };
    fail(Code::shape_mismatch, join(argument, " is ", shape_text(view.rows, view.cols), ", wanted [",
                                    wanted(rows), ", ", wanted(cols), "]"));
  }
  if (view.empty()) return;
  if (view.data == nullptr) fail(Code::null_pointer, join(argument, " has a shape but no memory"));
  constexpr Index most = std::numeric_limits<Index>::max() / static_cast<Index>(sizeof(*view.data));
  if (view.rows > most / view.cols)
    fail(Code::too_large,
         join(argument, " is ", shape_text(view.rows, view.cols), ", which does not fit in memory"));
  if (view.rows == 1) return;
  if (view.stride > most / view.rows)
    fail(Code::bad_stride, join(argument, " has stride ", view.stride, ", wanted at most ", most / view.rows,
                                " for its ", view.rows, " rows"));
  if (view.stride < view.cols)
    fail(Code::bad_stride,
         join(argument, " has stride ", view.stride, ", wanted at least ", view.cols, " (its columns)"));
}

inline void expect_size(std::string_view argument, std::size_t got, Index wanted) {
  if (got != static_cast<std::size_t>(wanted))
    fail(Code::shape_mismatch, join(argument, " has ", got, " numbers, wanted ", wanted));
}

inline void expect_range(bool inside, std::string_view setting, double got, std::string_view wanted) {
  if (!inside) fail(Code::config_range, join(setting, " is ", got, ", wanted ", wanted));
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
  if (overlap(a, b)) fail(Code::aliased, join(a_name, " overlaps ", b_name, ", wanted memory of its own"));
  if constexpr (sizeof...(more) > 0) expect_apart(a_name, a, more...);
}

template <class S>
In<std::remove_const_t<S>> as_view(std::span<S> v) {
  return {v.data(), v.empty() ? 0 : 1, static_cast<Index>(v.size())};
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI
