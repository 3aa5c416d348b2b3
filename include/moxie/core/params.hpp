// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/core/error.hpp>

#include <limits>
#include <span>
#include <string>
#include <vector>

namespace moxie::inline MOXIE_ABI {

/// A named tensor of a part's flat parameter vector; fields lie one after another in the order of `fields()`.
struct Field {
  std::string name = {};
  std::vector<Index> shape = {};
  bool trainable = true;
  bool decay = true;  ///< whether weight decay applies (IA3 vectors, routers and biases: no)

  Index size() const {
    Index n = 1;
    for (const Index extent : shape) n *= extent;
    return n;
  }
};

namespace detail {

/// Product of sizes, refused where it does not fit an Index.
inline Index checked_product(std::string_view what, Index a, Index b) {
  Index product = 0;
  if (__builtin_mul_overflow(a, b, &product))
    fail(Code::too_large, std::string(what) + ": " + text(a) + " times " + text(b) + " does not fit");
  return product;
}

/// Cuts consecutive tensors off a flat vector.
template <class S>
class Cursor {
 public:
  explicit Cursor(std::span<S> flat) : rest_(flat) {}
  std::span<S> take(Index n) {
    const std::span<S> head = rest_.first(static_cast<std::size_t>(n));
    rest_ = rest_.subspan(static_cast<std::size_t>(n));
    return head;
  }

 private:
  std::span<S> rest_;
};

}  // namespace detail

/// Numbers in a list of fields.
inline Index total_size(const std::vector<Field>& fields) {
  Index n = 0;
  for (const Field& field : fields) n += field.size();
  return n;
}

}  // namespace moxie::inline MOXIE_ABI
