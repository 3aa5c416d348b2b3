// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/checksum.hpp>
#include <moxie/io/safetensors_header.hpp>

#include <algorithm>
#include <cmath>

namespace moxie::inline MOXIE_ABI::io {

/// Tensors on their way into a file. The same content makes the same bytes, in whatever order it was added.
class TensorWriter {
  static auto refusal(const std::string& tensor) {
    return [&tensor](Code code, const auto&... what) {
      fail(code, detail::join("tensor ", detail::shown(tensor), ": ", what...));
    };
  }

 public:
  std::map<std::string, std::string> metadata;  ///< of the user; keys of "moxie." are the writer's own

  /// Keeps a copy of the numbers as `dtype`. Throws ShapeMismatch, NameTaken, UnsupportedDtype, NonFinite,
  /// ValueRange, and what the reader would say of the tensor's name and shape.
  template <Scalar S>
  void add(const std::string& tensor, std::vector<Index> shape, std::span<const S> values, Dtype dtype) {
    const auto refuse = refusal(tensor);
    detail::check_weight_dtype(dtype, refuse);
    const std::size_t size = facts(dtype).bits / 8;
    Stored stored = empty(tensor, std::move(shape), dtype, values.size(), size);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double wanted = static_cast<double>(values[i]);
      expect_finite(wanted, i, refuse);
      if (!detail::store_number(wanted, dtype, stored.bytes.data() + i * size))
        refuse(Code::value_range, "number ", i, " is ", wanted, ", too large for ", name(dtype));
    }
    tensors_.try_emplace(tensor, std::move(stored));
  }
  /// The same of a tensor's bytes as they are stored, of any dtype; only those that can be computed with are
  /// looked at for NaN.
  void add_bytes(const std::string& tensor, std::vector<Index> shape, std::string_view bytes, Dtype dtype) {
    Stored stored = empty(tensor, std::move(shape), dtype, bytes.size(), 1);
    const std::size_t size = facts(dtype).bits / 8;
    for (std::size_t i = 0; is_weight(dtype) && i < bytes.size() / size; ++i)
      expect_finite(detail::load_number(dtype, bytes.data() + i * size), i, refusal(tensor));
    stored.bytes = bytes;
    tensors_.try_emplace(tensor, std::move(stored));
  }

  /// Saves them as io::save_file does. What the reader would refuse is never written. Throws also
  /// BadMetadata, TooManyTensors, TooLarge (names or metadata).
  void save(const Path& path, bool* replaced = nullptr) const {
    const std::vector<const Stored*> order = in_order();
    const std::string start = header(order, path);
    std::vector<std::span<const char>> parts{start};
    for (const Stored* t : order) parts.emplace_back(t->bytes);
    save_file(path, std::span<const std::span<const char>>(parts), replaced);
  }
  /// The same in memory.
  std::string bytes() const {
    const std::vector<const Stored*> order = in_order();
    std::string all = header(order, "memory");
    for (const Stored* t : order) all += t->bytes;
    return all;
  }

 private:
  struct Stored {
    TensorInfo info;
    Bytes bytes;
  };
  std::map<std::string, Stored> tensors_;

  template <class Refuse>
  static void expect_finite(double number, std::size_t i, const Refuse& refuse) {
    if (!std::isfinite(number)) refuse(Code::non_finite, "number ", i, " is not finite");
  }
  /// Room for a tensor that has `count` numbers of `size` bytes, as its shape must say.
  Stored empty(const std::string& tensor, std::vector<Index> shape, Dtype dtype, std::size_t count,
               std::size_t size) const {
    const auto refuse = refusal(tensor);
    detail::check_tensor_name(tensor, refuse);
    if (tensors_.contains(tensor)) refuse(Code::name_taken, "added twice");
    detail::check_tensor_dims(shape.size(), refuse);
    TensorInfo info{.name = tensor, .dtype = dtype, .shape = std::move(shape)};
    const std::uint64_t wanted = detail::tensor_bytes(info, refuse) / size;
    if (wanted != count)
      refuse(Code::shape_mismatch, count, size > 1 ? " numbers, wanted " : " bytes, wanted ", wanted,
             " for its shape");
    return {std::move(info), Bytes(count * size, '\0')};
  }
  /// As the reference orders them: wide numbers first, so that all lie aligned, BF16 before F16, then by
  /// name.
  std::vector<const Stored*> in_order() const {
    std::vector<const Stored*> order;
    for (const auto& [key, t] : tensors_) order.push_back(&t);
    const auto rank = [](const Stored* t) { return std::pair(facts(t->info.dtype).bits, t->info.dtype); };
    std::stable_sort(order.begin(), order.end(),
                     [&](const Stored* a, const Stored* b) { return rank(a) > rank(b); });
    return order;
  }
  static std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }
  /// The length, the JSON and spaces up to a multiple of 8.
  std::string header(const std::vector<const Stored*>& order, const Path& path) const {
    const detail::Source source{path};
    for (const auto& [key, value] : metadata) {
      if (key.rfind(own_keys, 0) == 0)
        source.refuse(Code::bad_metadata, "key ", detail::shown(key), ", which is the writer's own");
      if (!detail::is_utf8(key) || !detail::is_utf8(value))
        source.refuse(Code::bad_metadata, "no UTF-8 in the metadata of key ", detail::shown(key));
    }
    std::map<std::string, std::string> texts = metadata;
    texts[std::string(version_key)] = moxie::detail::text(format_version);
    texts[std::string(header_key)] = "00000000";
    std::string& sums = texts[std::string(tensors_key)];
    for (const Stored* t : order) sums += checksum_text(crc32c(t->bytes));

    std::string json = "{\"__metadata__\":{";
    for (const auto& [key, value] : texts)
      json += detail::join(json.back() == '{' ? "" : ",", quoted(key), ":", quoted(value));
    json += '}';
    std::uint64_t at = 0;
    for (const Stored* t : order) {
      std::string shape;
      for (const Index n : t->info.shape) shape += detail::join(shape.empty() ? "" : ",", n);
      json += detail::join(",", quoted(t->info.name), ":{\"dtype\":\"", name(t->info.dtype), "\",\"shape\":[",
                           shape, "],\"data_offsets\":[", at, ",", at + t->bytes.size(), "]}");
      at += t->bytes.size();
    }
    json += '}';
    json.resize((json.size() + 7) / 8 * 8, ' ');
    // The reader judges the limits. They leave room for the longest spelling of names, texts and shapes:
    static_assert(2 * most_names_bytes + 6 * most_metadata_bytes + 10 * most_metadata_texts +
                      most_tensors * (60 + 20 * (most_dims + 2)) <
                  most_header_bytes);
    detail::read_header(json, at, source);
    const std::size_t digits = detail::header_digits(json);
    json.replace(digits, 8, detail::header_checksum(json, digits));
    std::string length(8, '\0');
    detail::store_little<std::uint64_t>(json.size(), length.data());
    return length + json;
  }
};

}  // namespace moxie::inline MOXIE_ABI::io
