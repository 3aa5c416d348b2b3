// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/dtype.hpp>
#include <moxie/io/json.hpp>

#include <algorithm>
#include <map>
#include <unordered_set>

namespace moxie::inline MOXIE_ABI::io {

/// One tensor of a safetensors file: row-major numbers at bytes [begin, end) of its data.
struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<Index> shape;  ///< outermost first; empty: one number
  std::uint64_t begin = 0, end = 0;
};

/// What the header of a safetensors file says: tensors in the order of their data, and texts by name.
struct TensorHeader {
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

/// The limits of a header. Only the first is the reference's own; the others are far above what adapters
/// need.
inline constexpr std::uint64_t most_header_bytes = 100'000'000;
inline constexpr std::size_t most_tensors = 100'000, most_dims = 8, most_name_bytes = 4096,
                             most_metadata_bytes = 1 << 20;

namespace detail {

/// Refuses a tensor's name that no file of ours could have. Throws EmptyName, NameTooLong, BadName.
template <class Refuse>
void check_tensor_name(std::string_view name, const Refuse& refuse) {
  if (name.empty()) refuse(Code::empty_name, "a tensor without a name");
  if (name.size() > most_name_bytes)
    refuse(Code::name_too_long,
           moxie::detail::join({"a tensor's name of ", moxie::detail::text(name.size()),
                                " bytes, wanted at most ", moxie::detail::text(most_name_bytes), ": ",
                                shown(name)}));
  for (const char c : name)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      refuse(Code::bad_name, "a control character in the tensor's name " + shown(name));
}

/// Bytes of a tensor, or the code that says why there is no such number.
inline std::uint64_t stored_bytes(const TensorInfo& t, std::optional<Code>& fault) {
  std::uint64_t count = 1, cap = 1, bits = 0;
  // Dimensions beside a zero are capped too, so that no later product can overflow.
  for (const Index n : t.shape) {
    const auto size = static_cast<std::uint64_t>(n);
    if (__builtin_mul_overflow(cap, std::max<std::uint64_t>(size, 1), &cap)) fault = Code::size_overflow;
    count *= size;
  }
  if (fault || __builtin_mul_overflow(cap, facts(t.dtype).bits, &bits)) {
    fault = Code::size_overflow;
    return 0;
  }
  bits = count * facts(t.dtype).bits;
  if (bits % 8 != 0) fault = Code::misaligned_size;
  return bits / 8;
}

/// Makes a TensorHeader of a header's JSON, event by event.
class HeaderEvents : public JsonEvents {
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
      metadata_bytes_ += key.size();
      if (header.metadata.contains(key)) refuse(Code::duplicate_key, "twice in __metadata__: " + shown(key));
      text_ = &header.metadata[key];
      at_ = At::text;
    } else if (at_ == At::entry) {
      begin_field(key);
    } else if (key == "__metadata__") {
      if (has_metadata_) refuse(Code::duplicate_key, "__metadata__ twice");
      has_metadata_ = true;
      at_ = At::metadata_value;
    } else {
      check_tensor_name(key, [this](Code code, const std::string& what) { refuse(code, what); });
      if (!names_.insert(key).second) refuse(Code::duplicate_key, "a tensor twice: " + shown(key));
      if (header.tensors.size() == most_tensors)
        refuse(Code::too_many_tensors, "more than " + moxie::detail::text(most_tensors) + " tensors");
      header.tensors.push_back({.name = key, .shape = {}});
      fields_ = 0;
      at_ = At::entry_value;
    }
    return true;
  }
  bool string(std::string& text) {
    if (at_ == At::text) {
      metadata_bytes_ += text.size();
      if (metadata_bytes_ > most_metadata_bytes)
        refuse(Code::too_large,
               "__metadata__ of more than " + moxie::detail::text(most_metadata_bytes) + " bytes");
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
      refuse_tensor(Code::bad_offsets, moxie::detail::text(offsets_) + " data_offsets, wanted 2");
    at_ = At::entry;
    return true;
  }
  bool number_unsigned(number_unsigned_t n) {
    TensorInfo* const t = header.tensors.empty() ? nullptr : &header.tensors.back();
    if (at_ == At::shape) {
      if (n > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()))
        refuse_tensor(Code::too_large, "a dimension of " + moxie::detail::text(n));
      if (t->shape.size() == most_dims)
        refuse_tensor(Code::too_many_dims, "more than " + moxie::detail::text(most_dims) + " dimensions");
      t->shape.push_back(static_cast<Index>(n));
    } else if (at_ == At::offsets) {
      if (offsets_ < 2) (offsets_ == 0 ? t->begin : t->end) = n;
      ++offsets_;
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
    bool cut = false;
    for (const TensorInfo& t : header.tensors) {
      std::optional<Code> fault;
      const std::uint64_t bytes = stored_bytes(t, fault);
      if (fault)
        refuse_tensor(*fault, "a shape whose size in bytes is no number of 64 bits, or no whole one", t);
      if (t.begin > t.end) refuse_tensor(Code::bad_offsets, "data_offsets that run backwards", t);
      const bool sized = t.end - t.begin == bytes;
      if (t.end > data_bytes && !sized)
        refuse_tensor(Code::offset_range,
                      moxie::detail::join({"data up to byte ", moxie::detail::text(t.end),
                                           ", wanted at most ", moxie::detail::text(data_bytes)}),
                      t);
      if (!sized)
        refuse_tensor(Code::size_mismatch,
                      moxie::detail::join({moxie::detail::text(t.end - t.begin), " bytes of data, wanted ",
                                           moxie::detail::text(bytes), " for its dtype and shape"}),
                      t);
      cut = cut || t.end > data_bytes;
    }
    std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
      return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    std::uint64_t filled = 0;
    for (const TensorInfo& t : header.tensors) {
      if (t.begin != filled)
        refuse_tensor(t.begin > filled ? Code::offset_hole : Code::offset_overlap,
                      moxie::detail::join({"data from byte ", moxie::detail::text(t.begin), ", wanted from ",
                                           moxie::detail::text(filled), ", where the tensor before it ends"}),
                      t);
      filled = t.end;
    }
    if (cut)
      refuse(Code::file_truncated,
             moxie::detail::join(
                 {moxie::detail::text(data_bytes), " bytes of data, wanted ", moxie::detail::text(filled)}));
    if (filled != data_bytes)
      refuse(Code::trailing_data,
             moxie::detail::join({moxie::detail::text(data_bytes), " bytes of data, wanted ",
                                  moxie::detail::text(filled), ", where the last tensor ends"}));
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

  [[noreturn]] void refuse(Code code, const std::string& what) const { source.refuse(code, what); }
  [[noreturn]] void refuse_tensor(Code code, const std::string& what, const TensorInfo& t) const {
    refuse(code, moxie::detail::join({"tensor ", shown(t.name), ": ", what}));
  }
  [[noreturn]] void refuse_tensor(Code code, const std::string& what) const {
    refuse_tensor(code, what, header.tensors.back());
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
        if (fields_ & 1u << i) refuse_tensor(Code::duplicate_key, moxie::detail::join({names[i], " twice"}));
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
      refuse_tensor(
          Code::missing_field,
          moxie::detail::join({"no ", fields_ & 1u ? (fields_ & 2u ? "data_offsets" : "shape") : "dtype"}));
  }

  At at_ = At::start;
  unsigned fields_ = 0;
  std::size_t offsets_ = 0, metadata_bytes_ = 0;
  bool has_metadata_ = false;
  std::string* text_ = nullptr;
  std::unordered_set<std::string> names_;
};

}  // namespace detail
}  // namespace moxie::inline MOXIE_ABI::io
