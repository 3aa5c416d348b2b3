// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/dtype.hpp>
#include <moxie/io/file.hpp>

#include <bit>

namespace moxie::inline MOXIE_ABI::io::detail {

/// What a name in a pickle stands for.
enum class PickleName : std::uint8_t { ordered_dict, tensor, parameter, storage };
struct PickleGlobal {
  std::string_view module, name;
  PickleName what = PickleName::storage;
  Dtype dtype = Dtype::f32;  ///< of a storage
};
inline constexpr PickleGlobal pickle_globals[] = {
    {"collections", "OrderedDict", PickleName::ordered_dict},
    {"torch._utils", "_rebuild_tensor_v2", PickleName::tensor},
    {"torch._utils", "_rebuild_parameter", PickleName::parameter},
    {.module = "torch", .name = "FloatStorage", .dtype = Dtype::f32},
    {.module = "torch", .name = "HalfStorage", .dtype = Dtype::f16},
    {.module = "torch", .name = "BFloat16Storage", .dtype = Dtype::bf16},
    {.module = "torch", .name = "DoubleStorage", .dtype = Dtype::f64},
    {.module = "torch", .name = "LongStorage", .dtype = Dtype::i64},
    {.module = "torch", .name = "IntStorage", .dtype = Dtype::i32},
    {.module = "torch", .name = "ShortStorage", .dtype = Dtype::i16},
    {.module = "torch", .name = "CharStorage", .dtype = Dtype::i8},
    {.module = "torch", .name = "ByteStorage", .dtype = Dtype::u8},
    {.module = "torch", .name = "BoolStorage", .dtype = Dtype::boolean}};

struct PickleValue {
  enum class Kind : std::uint8_t { boolean, integer, text, global, tuple, dict, storage, tensor };
  Kind kind = Kind::boolean;
  std::uint32_t size = 0;  ///< bytes of a text, items of a tuple
  std::uint64_t at = 0;    ///< the number; a text's byte in the pickle; what it is in the list of its kind
};
inline std::string_view name(PickleValue::Kind kind) {
  constexpr std::string_view names[] = {"a truth value", "an integer",   "a text",    "a name",
                                        "a tuple",       "a dictionary", "a storage", "a tensor"};
  return names[static_cast<std::size_t>(kind)];
}

/// What a pickle has made: tuples and dictionaries, each a place in one of a few lists, so that values may
/// refer to each other however they like. Its texts stay in the pickle.
class PickleStore {
 public:
  using Value = PickleValue;
  using Kind = PickleValue::Kind;
  /// Room for about 50,000 tensors, in less than 64 MB whatever a pickle asks for.
  static constexpr std::uint64_t most_kept = 1 << 21;

  explicit PickleStore(std::string_view pickle) : pickle_(pickle) {}

  /// Counts values that stay for the rest of the reading; false where they have become too many.
  bool keep(std::uint64_t values) {
    kept_ += values;
    return kept_ <= most_kept;
  }
  Value new_tuple(std::span<const Value> items) {
    tuples_.insert(tuples_.end(), items.begin(), items.end());
    return {.kind = Kind::tuple,
            .size = static_cast<std::uint32_t>(items.size()),
            .at = tuples_.size() - items.size()};
  }
  Value new_dict(bool ordered) {
    dicts_.push_back({.ordered = ordered});
    return {.kind = Kind::dict, .at = dicts_.size() - 1};
  }
  void add(const Value& dict, const Value& key, const Value& value) {
    Dict& d = dicts_[static_cast<std::size_t>(dict.at)];
    const auto at = static_cast<std::uint32_t>(entries_.size());
    entries_.push_back({.key = key, .value = value});
    (d.count == 0 ? d.first : entries_[d.last].next) = at;
    d.last = at;
    ++d.count;
  }

  std::string_view text(const Value& v) const {
    return pickle_.substr(static_cast<std::size_t>(v.at), v.size);
  }
  static std::int64_t integer(const Value& v) { return std::bit_cast<std::int64_t>(v.at); }
  std::span<const Value> items(const Value& tuple) const {
    return std::span<const Value>(tuples_).subspan(static_cast<std::size_t>(tuple.at), tuple.size);
  }
  std::uint64_t size(const Value& dict) const { return dicts_[static_cast<std::size_t>(dict.at)].count; }
  bool is_ordered_dict(const Value& v) const {
    return v.kind == Kind::dict && dicts_[static_cast<std::size_t>(v.at)].ordered;
  }
  bool is_empty_ordered_dict(const Value& v) const { return is_ordered_dict(v) && size(v) == 0; }
  /// f(key, value) for every entry, in their order.
  template <class F>
  void for_entries(const Value& dict, F&& f) const {
    const Dict& d = dicts_[static_cast<std::size_t>(dict.at)];
    std::uint32_t at = d.first;
    for (std::uint64_t i = 0; i < d.count; ++i, at = entries_[at].next)
      f(entries_[at].key, entries_[at].value);
  }

 private:
  struct Dict {
    bool ordered = false;
    std::uint32_t first = 0, last = 0;  // its entries are a list, since other dictionaries' lie between
    std::uint64_t count = 0;
  };
  struct Entry {
    Value key, value;
    std::uint32_t next = 0;
  };

  std::string_view pickle_;
  std::uint64_t kept_ = 0;
  std::vector<Value> tuples_;
  std::vector<Dict> dicts_;
  std::vector<Entry> entries_;
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
