// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/adapter_config.hpp>
#include <moxie/presets.hpp>

/// Which tensors a module consists of in each format: their names, shapes, and where their numbers lie in the
/// module's theta. Reading and writing both go by this.
namespace moxie::inline MOXIE_ABI::io::detail {

/// What a tensor is to its module.
enum class Part { a, b, bias, vector, router, router_noise };

/// How a format names a part: the end of the tensor's name behind "module."; '#' is the expert's number.
struct Tail {
  Format format;
  Part part;
  std::string_view text;
};
inline constexpr Tail tails[] = {
    {Format::peft, Part::a, "lora_A.weight"},
    {Format::peft, Part::b, "lora_B.weight"},
    {Format::peft, Part::bias, "lora_B.bias"},
    {Format::peft, Part::vector, "ia3_l"},
    {Format::mixture, Part::a, "lora_A.#.weight"},
    {Format::mixture, Part::b, "lora_B.#.weight"},
    {Format::mixture, Part::bias, "lora_B.#.bias"},
    {Format::mixture, Part::vector, "ia3_l"},
    {Format::mixture, Part::router, "router.weight"},
    {Format::mixture, Part::router_noise, "router_noise.weight"},
    {Format::mola, Part::a, "lora_A_#.weight"},
    {Format::mola, Part::b, "lora_B_#.weight"},
    {Format::mola, Part::router, "router.router.weight"},
    {Format::loramoe, Part::a, "lora_A#.weight"},
    {Format::loramoe, Part::b, "lora_B#.weight"},
    {Format::loramoe, Part::router, "lora_route.weight"},
    {Format::hydralora, Part::a, "lora_A.weight"},
    {Format::hydralora, Part::b, "lora_B#.weight"},
    {Format::hydralora, Part::router, "lora_route.weight"},
    {Format::moe_peft, Part::a, "experts.#.lora_A.weight"},
    {Format::moe_peft, Part::b, "experts.#.lora_B.weight"},
    {Format::moe_peft, Part::router, "moe_gate.weight"},
    {Format::moe_peft, Part::a, "lora_A.weight"},  // attention's plain LoRA
    {Format::moe_peft, Part::b, "lora_B.weight"},
};

/// One tensor of a module as it lies on disk, row-major.
struct Piece {
  Part part;
  Index expert = -1;         ///< -1: the part is the module's own, in one tensor
  std::vector<Index> shape;  ///< on disk
  Index offset = 0;          ///< of its first number in the module's theta
  bool transposed = false;   ///< theta holds the columns of the tensor as rows, [shape[1], shape[0]]
  Index interleaved = 1;     ///< of E experts of rank r: column k E + e of the tensor is row e r + k of theta

  Index size() const {
    Index n = 1;
    for (const Index extent : shape) n *= extent;
    return n;
  }
  /// The row of theta that a column of a transposed tensor is.
  std::size_t row_of(std::size_t column) const {
    const auto experts = static_cast<std::size_t>(interleaved), cols = static_cast<std::size_t>(shape[1]);
    return column % experts * (cols / experts) + column / experts;
  }
};

/// to and from theta: piece.transposed says whether columns become rows.
template <class S>
void to_theta(const Piece& piece, std::span<const S> stored, std::span<S> theta) {
  const std::span<S> to = theta.subspan(static_cast<std::size_t>(piece.offset), stored.size());
  if (!piece.transposed) {
    std::copy(stored.begin(), stored.end(), to.begin());
    return;
  }
  const auto rows = static_cast<std::size_t>(piece.shape[0]), cols = static_cast<std::size_t>(piece.shape[1]);
  for (std::size_t j = 0; j < cols; ++j) {
    const std::size_t row = piece.row_of(j);
    for (std::size_t i = 0; i < rows; ++i) to[row * rows + i] = stored[i * cols + j];
  }
}
template <class S>
std::vector<S> from_theta(const Piece& piece, std::span<const S> theta) {
  const auto from =
      theta.subspan(static_cast<std::size_t>(piece.offset), static_cast<std::size_t>(piece.size()));
  std::vector<S> stored(from.begin(), from.end());
  if (!piece.transposed) return stored;
  const auto rows = static_cast<std::size_t>(piece.shape[0]), cols = static_cast<std::size_t>(piece.shape[1]);
  for (std::size_t j = 0; j < cols; ++j) {
    const std::size_t row = piece.row_of(j);
    for (std::size_t i = 0; i < rows; ++i) stored[i * cols + j] = from[row * rows + i];
  }
  return stored;
}

/// A and B of every expert, and their biases.
template <class S>
std::vector<Piece> bank_pieces(const LoraBank<S>& bank, Format format, bool single, bool) {
  std::vector<Piece> pieces;
  const bool numbered = format != Format::peft && !(format == Format::moe_peft && single);
  const Index all = bank.total_rank(), in = bank.in(), out = bank.out();
  if (format == Format::peft && !single)  // PEFT's ParamWrapper: A is (E, r, in), but B is (out, r, E)
    return {{Part::a, -1, {all, in}, 0}, {Part::b, -1, {out, all}, all * in, true, bank.experts()}};
  for (Index e = 0; e < bank.experts(); ++e) {
    const Index id = numbered ? e : -1;
    pieces.push_back({Part::a, id, {bank.rank(e), in}, bank.begin(e) * in});
    pieces.push_back({Part::b, id, {out, bank.rank(e)}, all * in + bank.begin(e) * out, true});
    if (bank.config().bias) pieces.push_back({Part::bias, id, {out}, all * (in + out) + e * out});
  }
  return pieces;
}
/// The one A, and B of every expert.
template <class S>
std::vector<Piece> bank_pieces(const HydraBank<S>& bank, Format, bool, bool) {
  const Index r = bank.rank(), in = bank.in(), out = bank.out();
  std::vector<Piece> pieces{{Part::a, -1, {r, in}, 0}};
  for (Index e = 0; e < bank.experts(); ++e)
    pieces.push_back({Part::b, e, {out, r}, r * in + e * r * out, true});
  return pieces;
}
/// IA3's vector [d, 1], or [1, d] where it scales the input of the module; a mixture's [E, d] or, per head,
/// [heads, E, d / heads].
template <class S>
std::vector<Piece> bank_pieces(const Ia3Bank<S>& bank, Format format, bool, bool feedforward) {
  const Index d = bank.in(), heads = bank.config().heads;
  std::vector<Index> shape{bank.experts(), d};
  if (heads > 1) shape = {heads, bank.experts(), d / heads};
  if (format == Format::peft) shape = feedforward ? std::vector<Index>{1, d} : std::vector<Index>{d, 1};
  return {{Part::vector, -1, shape, 0}};
}

/// The tensors of a module. `feedforward`: it is one of IA3's feedforward modules.
template <class Bank, class Router>
std::vector<Piece> pieces_of(const MoeAdapter<Bank, Router>& adapter, Format format, bool feedforward) {
  const bool single =
      std::same_as<Router, UniformRouter<typename Bank::Scalar>> && adapter.experts().experts() == 1;
  std::vector<Piece> pieces = bank_pieces(adapter.experts(), format, single, feedforward);
  Index offset = adapter.experts().size();
  for (const Field& field : adapter.router().fields()) {
    pieces.push_back({field.name == "router" ? Part::router : Part::router_noise, -1, field.shape, offset});
    offset += field.size();
  }
  return pieces;
}

/// What stands in front of a module's path: PEFT's words, or in MoE-PEFT the method's in place of "model.".
inline std::string_view prefix_of(Format format, const AdapterConfig& c) {
  if (format != Format::moe_peft) return "base_model.model.";
  return c.peft_type == "MOLA" ? "mola." : "loramoe.";
}
inline constexpr std::string_view moe_peft_root = "model.";

/// A module's path behind the prefix.
inline std::string_view path_in_file(Format format, std::string_view module) {
  return format == Format::moe_peft ? module.substr(moe_peft_root.size()) : module;
}
/// A tensor's name from its module's path on; nothing where the prefix is not there.
inline std::optional<std::string> without_prefix(Format format, const AdapterConfig& c,
                                                 std::string_view name) {
  const std::string_view prefix = prefix_of(format, c);
  if (name.substr(0, prefix.size()) != prefix) return std::nullopt;
  return std::string(format == Format::moe_peft ? moe_peft_root : "").append(name.substr(prefix.size()));
}

/// Whether a module is of a feed-forward block, by the names that MoE-PEFT gives them.
inline bool is_in_mlp(std::string_view module) { return module.find(".mlp.") != std::string_view::npos; }

/// Where a tensor belongs; nothing where its name has none of the format's tails.
struct Place {
  std::string module;
  Part part = Part::a;
  Index expert = -1;
  bool bad_expert = false;  ///< its number is no number from 0 on in its only spelling
};

/// The text in the place of '#' where `name` ends with the tail behind a dot; nothing else.
inline std::optional<std::pair<std::string_view, std::string_view>> split_tail(std::string_view name,
                                                                               std::string_view tail) {
  const std::size_t hash = tail.find('#');
  const std::string_view back = hash == std::string_view::npos ? tail : tail.substr(hash + 1);
  if (name.size() < back.size() || name.substr(name.size() - back.size()) != back) return std::nullopt;
  std::string_view rest = name.substr(0, name.size() - back.size());
  std::string_view number;
  if (hash != std::string_view::npos) {
    const std::string_view front = tail.substr(0, hash);
    // The number: no dot in it, the tail's front before it.
    const std::size_t dot = rest.rfind('.');
    const std::size_t last = front.rfind('.');
    const std::size_t inner = last == std::string_view::npos ? front.size() : front.size() - last - 1;
    if (dot == std::string_view::npos || rest.size() - dot - 1 <= inner) return std::nullopt;
    number = rest.substr(dot + 1 + inner);
    if (!(number[0] == '-' || (number[0] >= '0' && number[0] <= '9'))) return std::nullopt;
    rest.remove_suffix(number.size());
    if (rest.size() < front.size() || rest.substr(rest.size() - front.size()) != front) return std::nullopt;
    rest.remove_suffix(front.size());
  }
  if (rest.size() < 2 || rest.back() != '.') return std::nullopt;
  return std::pair{rest.substr(0, rest.size() - 1), number};
}

inline std::optional<Place> place_of(Format format, std::string_view name) {
  for (const Tail& tail : tails) {
    if (tail.format != format) continue;
    const auto split = split_tail(name, tail.text);
    if (!split) continue;
    Place place{std::string(split->first), tail.part};
    const std::string_view number = split->second;
    if (number.empty()) return place;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), place.expert);
    place.bad_expert = error != std::errc() || end != number.data() + number.size() || place.expert < 0 ||
                       (number.size() > 1 && number[0] == '0');
    return place;
  }
  return std::nullopt;
}

/// The name of a piece of a module. Throws UnsupportedOption where the format has none for it.
inline std::string name_of(Format format, std::string_view prefix, std::string_view module,
                           const Piece& piece) {
  for (const Tail& tail : tails) {
    const std::size_t hash = tail.text.find('#');
    if (tail.format != format || tail.part != piece.part ||
        (hash == std::string_view::npos) != (piece.expert < 0))
      continue;
    std::string name = join(prefix, module, ".");
    if (hash == std::string_view::npos) return name.append(tail.text);
    return name.append(tail.text.substr(0, hash))
        .append(moxie::detail::text(piece.expert))
        .append(tail.text.substr(hash + 1));
  }
  fail(Code::unsupported_option, join("module ", shown(module), ": the format ", io::name(format),
                                      " cannot hold its ", piece.part == Part::bias ? "biases" : "tensors"));
}

}  // namespace moxie::inline MOXIE_ABI::io::detail
