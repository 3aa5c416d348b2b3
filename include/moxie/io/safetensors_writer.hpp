// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/checksum.hpp>
#include <moxie/io/safetensors_header.hpp>

#include <algorithm>
#include <cmath>

namespace moxie::inline MOXIE_ABI::io {

/// Tensors on their way into a file. The same content makes the same bytes, in whatever order it was added.
class TensorWriter {
 public:
  std::map<std::string, std::string> metadata;  ///< of the user; keys of "moxie." are the writer's own

  /// Keeps a copy of the numbers as `dtype`. Throws ShapeMismatch, NameTaken, UnsupportedDtype, NonFinite,
  /// ValueRange, and what is said of a tensor's name.
  template <Scalar S>
  void add(const std::string& tensor, std::vector<Index> shape, std::span<const S> values, Dtype dtype) {
    const auto refuse = [&](Code code, std::string_view what) {
      fail(code, moxie::detail::join({"tensor ", detail::shown(tensor), ": ", what}));
    };
    detail::check_tensor_name(tensor, [](Code code, const std::string& what) { fail(code, what); });
    for (std::size_t i = 0; i < tensor.size();) {
      const std::size_t length = detail::utf8_length(std::string_view(tensor).substr(i, 4));
      if (length == 0) refuse(Code::bad_name, "its name is no UTF-8");
      i += length;
    }
    if (tensor == "__metadata__") refuse(Code::bad_name, "the format uses this name itself");
    if (!is_weight(dtype))
      refuse(Code::unsupported_dtype,
             moxie::detail::join({"dtype ", name(dtype), ", wanted F64, F32, F16 or BF16"}));
    if (shape.size() > most_dims)
      refuse(Code::too_many_dims, "more than " + moxie::detail::text(most_dims) + " dimensions");
    TensorInfo info{.name = tensor, .dtype = dtype, .shape = std::move(shape)};
    std::uint64_t count = 1;
    for (const Index n : info.shape)
      if (n < 0 || __builtin_mul_overflow(count, static_cast<std::uint64_t>(n), &count))
        refuse(Code::size_overflow, "its shape");
    if (count != values.size())
      refuse(Code::shape_mismatch,
             moxie::detail::join({moxie::detail::text(values.size()), " numbers, wanted ",
                                  moxie::detail::text(count), " for its shape"}));
    const std::size_t size = facts(dtype).bits / 8;
    Bytes stored(values.size() * size);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double wanted = static_cast<double>(values[i]);
      if (!std::isfinite(wanted))
        refuse(Code::non_finite, "number " + moxie::detail::text(i) + " is not finite");
      if (!detail::store_number(wanted, dtype, stored.data() + i * size))
        refuse(Code::value_range,
               moxie::detail::join({"number ", moxie::detail::text(i), " is ", moxie::detail::text(wanted),
                                    ", too large for ", name(dtype)}));
    }
    if (!tensors_.try_emplace(tensor, Stored{std::move(info), std::move(stored)}).second)
      refuse(Code::name_taken, "added twice");
  }

  /// Saves them as io::save_file does. Throws also BadMetadata, HeaderTooLarge, TooManyTensors.
  void save(const Path& path) const {
    const std::vector<const Stored*> order = in_order();
    const std::string start = header(order);
    std::vector<std::span<const char>> parts{start};
    for (const Stored* t : order) parts.emplace_back(t->bytes);
    save_file(path, std::span<const std::span<const char>>(parts));
  }
  /// The same in memory.
  std::string bytes() const {
    const std::vector<const Stored*> order = in_order();
    std::string all = header(order);
    for (const Stored* t : order) all.append(t->bytes.data(), t->bytes.size());
    return all;
  }

 private:
  struct Stored {
    TensorInfo info;
    Bytes bytes;
  };
  std::map<std::string, Stored> tensors_;

  /// As the reference orders them: wide numbers first, so that all lie aligned, then by name.
  std::vector<const Stored*> in_order() const {
    std::vector<const Stored*> order;
    for (const auto& [key, t] : tensors_) order.push_back(&t);
    std::stable_sort(order.begin(), order.end(), [](const Stored* a, const Stored* b) {
      return facts(a->info.dtype).bits > facts(b->info.dtype).bits;
    });
    return order;
  }
  /// The length, the JSON and spaces up to a multiple of 8.
  std::string header(const std::vector<const Stored*>& order) const {
    if (order.size() > most_tensors)
      fail(Code::too_many_tensors, "more than " + moxie::detail::text(most_tensors) + " tensors");
    std::map<std::string, std::string> texts = metadata;
    for (const auto& [key, value] : metadata)
      if (key.rfind("moxie.", 0) == 0)
        fail(Code::bad_metadata, "key " + detail::shown(key) + ", which is the writer's own");
    texts[std::string(version_key)] = moxie::detail::text(format_version);
    texts[std::string(header_key)] = "00000000";
    nlohmann::ordered_json json;
    for (const Stored* t : order)
      texts[std::string(tensor_key) + t->info.name] =
          checksum_text(crc32c({t->bytes.data(), t->bytes.size()}));
    json["__metadata__"] = texts;
    std::uint64_t at = 0;
    for (const Stored* t : order) {
      json[t->info.name] = {{"dtype", name(t->info.dtype)},
                            {"shape", t->info.shape},
                            {"data_offsets", {at, at + t->bytes.size()}}};
      at += t->bytes.size();
    }
    std::string text;
    try {
      text = json.dump();
    } catch (const nlohmann::json::exception&) {
      fail(Code::bad_metadata, "a text of the metadata is no UTF-8");
    }
    text.resize((text.size() + 7) / 8 * 8, ' ');
    if (text.size() > most_header_bytes)
      fail(Code::header_too_large, moxie::detail::text(text.size()) + " bytes of header");
    const std::size_t digits = detail::header_digits(text);
    text.replace(digits, 8, detail::header_checksum(text, digits));
    std::string length(8, '\0');
    detail::store_little<std::uint64_t>(text.size(), length.data());
    return length + text;
  }
};

}  // namespace moxie::inline MOXIE_ABI::io
