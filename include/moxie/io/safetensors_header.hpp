// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/tensor_info.hpp>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <tuple>

namespace moxie::inline MOXIE_ABI::io {

/// What the header of a safetensors file says.
struct TensorHeader {
  std::vector<TensorInfo> tensors;  ///< in the order of their data
  std::map<std::string, std::string> metadata;
  std::vector<std::uint32_t> by_name;  ///< places in `tensors`, in the order of their names

  const TensorInfo* find(std::string_view name) const {
    const auto found =
        std::lower_bound(by_name.begin(), by_name.end(), name,
                         [this](std::uint32_t i, std::string_view n) { return tensors[i].name < n; });
    return found == by_name.end() || tensors[*found].name != name ? nullptr : &tensors[*found];
  }
  /// Fills by_name; returns a name that stands there twice, or null. By order: a table could be flooded with
  /// colliding names.
  const std::string* sort_names() {
    by_name.resize(tensors.size());
    std::iota(by_name.begin(), by_name.end(), 0u);
    const auto name = [this](std::uint32_t i) -> const std::string& { return tensors[i].name; };
    std::sort(by_name.begin(), by_name.end(),
              [&](std::uint32_t a, std::uint32_t b) { return name(a) < name(b); });
    const auto twice = std::adjacent_find(
        by_name.begin(), by_name.end(), [&](std::uint32_t a, std::uint32_t b) { return name(a) == name(b); });
    return twice == by_name.end() ? nullptr : &name(*twice);
  }
};

namespace detail {

/// Makes a TensorHeader of a header's JSON, event by event.
class HeaderEvents : public JsonEvents {
  auto refusal(const TensorInfo& t) const {
    return [this, &t](Code code, const auto&... what) { refuse_of(code, t, what...); };
  }

 public:
  explicit HeaderEvents(const Source& s) : JsonEvents{s} {}
  TensorHeader header;

  bool start_object(std::size_t) {
    if (at_ == At::start)
      at_ = At::top;
    else if (at_ == At::metadata_value)
      at_ = At::metadata;
    else if (at_ == At::entry_value)
      at_ = At::entry;
    else
      misplaced();
    return true;
  }
  bool end_object() {
    if (at_ == At::entry) finish_entry();
    at_ = at_ == At::top ? At::end : At::top;
    return true;
  }
  bool key(std::string& key) {
    if (at_ == At::metadata) {
      if (header.metadata.contains(key)) refuse(Code::duplicate_key, "twice in __metadata__: " + shown(key));
      if (header.metadata.size() == most_metadata_texts)
        refuse(Code::too_large, "__metadata__ of more than ", most_metadata_texts, " texts");
      count(metadata_bytes_, key.size(), most_metadata_bytes, "__metadata__");
      text_ = &header.metadata[key];
      at_ = At::text;
    } else if (at_ == At::entry) {
      begin_field(key);
    } else if (key == "__metadata__") {
      if (has_metadata_) refuse(Code::duplicate_key, "__metadata__ twice");
      has_metadata_ = true;
      at_ = At::metadata_value;
    } else {
      check_tensor_name(key, [this](Code code, const auto&... what) { refuse(code, what...); });
      count(names_bytes_, key.size(), most_names_bytes, "tensors' names");
      if (header.tensors.size() == most_tensors)
        refuse(Code::too_many_tensors, "more than ", most_tensors, " tensors");
      header.tensors.push_back({.name = key, .shape = {}});
      fields_ = 0;
      at_ = At::entry_value;
    }
    return true;
  }
  bool string(std::string& text) {
    if (at_ == At::text) {
      count(metadata_bytes_, text.size(), most_metadata_bytes, "__metadata__");
      *text_ = text;
      at_ = At::metadata;
    } else if (at_ == At::dtype) {
      const std::optional<Dtype> dtype = dtype_of(text);
      if (!dtype)
        refuse_tensor(Code::unknown_dtype, "dtype " + shown(text) + ", wanted one as F32, F16, BF16");
      header.tensors.back().dtype = *dtype;
      at_ = At::entry;
    } else {
      misplaced();
    }
    return true;
  }
  bool start_array(std::size_t) {
    if (at_ == At::shape_value)
      at_ = At::shape;
    else if (at_ == At::offsets_value)
      at_ = At::offsets;
    else
      misplaced();
    return true;
  }
  bool end_array() {
    if (at_ == At::offsets && offsets_ != 2)
      refuse_tensor(Code::bad_offsets, offsets_, " data_offsets, wanted 2");
    at_ = At::entry;
    return true;
  }
  bool number_unsigned(number_unsigned_t n) {
    TensorInfo* const t = header.tensors.empty() ? nullptr : &header.tensors.back();
    if (at_ == At::shape) {
      if (n > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()))
        refuse_tensor(Code::too_large, "a dimension of ", n);
      t->shape.push_back(static_cast<Index>(n));
      check_tensor_dims(t->shape.size(), refusal(*t));
    } else if (at_ == At::offsets) {
      if (offsets_ == 2) refuse_tensor(Code::bad_offsets, "more than 2 data_offsets");
      (offsets_++ == 0 ? t->begin : t->end) = n;
    } else {
      misplaced();
    }
    return true;
  }
  bool number_integer(number_integer_t) { return misplaced(); }  // negative, or -0
  bool number_float(number_float_t, const std::string& text) {
    const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
    if (digits && (at_ == At::shape || at_ == At::offsets))
      refuse_tensor(Code::integer_range, "the number " + shown(text) + ", wanted one below 2^64");
    return misplaced();
  }
  bool null() { return misplaced(); }
  bool boolean(bool) { return misplaced(); }

  /// Puts the tensors in the order of their data and refuses what does not fill exactly `data_bytes`.
  void finish(std::uint64_t data_bytes) {
    std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
      return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    if (const std::string* const twice = header.sort_names())
      refuse(Code::duplicate_key, "a tensor twice: " + shown(*twice));
    bool cut = false;
    for (const TensorInfo& t : header.tensors) {
      const std::uint64_t bytes = tensor_bytes(t, refusal(t));
      if (t.begin > t.end) refuse_of(Code::bad_offsets, t, "data_offsets that run backwards");
      const bool sized = t.end - t.begin == bytes;
      if (t.end > data_bytes && !sized)
        refuse_of(Code::offset_range, t, "data up to byte ", t.end, ", wanted at most ", data_bytes);
      if (!sized)
        refuse_of(Code::size_mismatch, t, t.end - t.begin, " bytes of data, wanted ", bytes,
                  " for its dtype and shape");
      cut = cut || t.end > data_bytes;
    }
    std::uint64_t filled = 0;
    for (const TensorInfo& t : header.tensors) {
      if (t.begin != filled)
        refuse_of(t.begin > filled ? Code::offset_hole : Code::offset_overlap, t, "data from byte ", t.begin,
                  ", wanted from ", filled, ", where the tensor before it ends");
      filled = t.end;
    }
    if (cut) refuse(Code::file_truncated, data_bytes, " bytes of data, wanted ", filled);
    if (filled != data_bytes)
      refuse(Code::trailing_data, data_bytes, " bytes of data, wanted ", filled,
             ", where the last tensor ends");
  }

 private:
  enum class At {
    start,
    top,
    entry_value,
    entry,
    dtype,
    shape_value,
    shape,
    offsets_value,
    offsets,
    metadata_value,
    metadata,
    text,
    end
  };

  template <class... What>
  [[noreturn]] void refuse(Code code, const What&... what) const {
    source.refuse(code, what...);
  }
  template <class... What>
  [[noreturn]] void refuse_of(Code code, const TensorInfo& t, const What&... what) const {
    refuse(code, "tensor ", shown(t.name), ": ", what...);
  }
  /// Of the tensor that is being read.
  template <class... What>
  [[noreturn]] void refuse_tensor(Code code, const What&... what) const {
    refuse_of(code, header.tensors.back(), what...);
  }
  /// Adds n to a sum of bytes that has a limit.
  void count(std::size_t& sum, std::size_t n, std::size_t most, std::string_view of) const {
    sum += n;
    if (sum > most) refuse(Code::too_large, of, " of more than ", most, " bytes");
  }
  bool misplaced() const {
    switch (at_) {
      case At::metadata_value:
      case At::text:
        refuse(Code::bad_metadata, "__metadata__ wants an object of texts");
      case At::entry_value:
        refuse_tensor(Code::bad_tensor_entry, "wanted an object");
      case At::dtype:
        refuse_tensor(Code::unknown_dtype, "a dtype that is no text");
      case At::shape_value:
      case At::shape:
        refuse_tensor(Code::bad_shape, "wanted a list of whole numbers from 0 on");
      case At::offsets_value:
      case At::offsets:
        refuse_tensor(Code::bad_offsets, "wanted two whole numbers from 0 on");
      default:
        refuse(Code::json_syntax, "a value where none belongs");
    }
  }
  void begin_field(const std::string& key) {
    constexpr std::string_view names[] = {"dtype", "shape", "data_offsets"};
    constexpr At places[] = {At::dtype, At::shape_value, At::offsets_value};
    for (unsigned i = 0; i < 3; ++i)
      if (key == names[i]) {
        if (fields_ & 1u << i) refuse_tensor(Code::duplicate_key, names[i], " twice");
        fields_ |= 1u << i;
        offsets_ = 0;
        at_ = places[i];
        return;
      }
    refuse_tensor(Code::unknown_field,
                  "field " + shown(key) + ", wanted dtype, shape and data_offsets alone");
  }
  void finish_entry() {
    if (fields_ != 7)
      refuse_tensor(Code::missing_field, "no ",
                    fields_ & 1u ? (fields_ & 2u ? "data_offsets" : "shape") : "dtype");
  }

  At at_ = At::start;
  unsigned fields_ = 0;
  std::size_t offsets_ = 0, metadata_bytes_ = 0, names_bytes_ = 0;
  bool has_metadata_ = false;
  std::string* text_ = nullptr;
};

/// Reads the JSON of a header whose tensors take `data_bytes`. Throws what tests/io/README.md lists of
/// headers.
inline TensorHeader read_header(std::string_view json, std::uint64_t data_bytes, const Source& source) {
  constexpr int depth = 8;
  HeaderEvents events(source);
  read_json(json, depth, events, source);
  events.finish(data_bytes);
  return std::move(events.header);
}

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI::io
