// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "types.hpp"

namespace llama {

/// The shape of a Llama decoder. `tied`: the output head is the embedding.
struct Config {
  Index dim = 64, hidden = 176, layers = 4, heads = 4, kv_heads = 4, vocab = 256, context = 64;
  bool tied = true;

  Index head_dim() const { return dim / heads; }
  Index kv_dim() const { return head_dim() * kv_heads; }
  bool operator==(const Config&) const = default;
};

inline constexpr Index longest_context = 1 << 20;

/// Throws std::runtime_error "`where`: name: got ..., wanted ..." for a shape that no model can have.
inline void check(const Config& c, const std::string& where) {
  const auto wants = [&](bool ok, const char* name, Index got, const std::string& wanted) {
    if (!ok)
      throw std::runtime_error(where + ": " + name + ": got " + std::to_string(got) + ", wanted " + wanted);
  };
  const Index limit = Index{1} << 31;
  wants(c.dim > 0 && c.dim < limit, "dim", c.dim, "a positive number");
  wants(c.hidden > 0 && c.hidden < limit, "hidden", c.hidden, "a positive number");
  wants(c.layers > 0 && c.layers < limit, "layers", c.layers, "a positive number");
  wants(c.heads > 0 && c.dim % c.heads == 0, "heads", c.heads, "a divisor of dim " + std::to_string(c.dim));
  wants(c.head_dim() % 2 == 0, "dim / heads", c.head_dim(), "an even number (rotary pairs)");
  wants(c.kv_heads > 0 && c.heads % c.kv_heads == 0, "kv_heads", c.kv_heads,
        "a divisor of heads " + std::to_string(c.heads));
  wants(c.vocab > 0 && c.vocab < limit, "vocab", c.vocab, "a positive number");
  wants(c.context > 0 && c.context <= longest_context, "context", c.context,
        "1 to " + std::to_string(longest_context));
}

/// The kinds of weights in the order of a llama2.c checkpoint; each is stored for all layers together.
enum class Weight { embed, norm_att, q, k, v, o, norm_ffn, gate, down, up, norm_out, head };

/// Where every tensor lies in the one flat vector of weights. Linears are `[out, in]`, norms `[1, dim]`.
class Layout {
 public:
  struct Kind {
    Index offset, copies, rows, cols;
  };

  Layout() = default;
  explicit Layout(const Config& c) {
    const Index d = c.dim, h = c.hidden, kv = c.kv_dim(), L = c.layers;
    kinds_ = {{{0, 1, c.vocab, d},
               {0, L, 1, d},
               {0, L, d, d},
               {0, L, kv, d},
               {0, L, kv, d},
               {0, L, d, d},
               {0, L, 1, d},
               {0, L, h, d},
               {0, L, d, h},
               {0, L, h, d},
               {0, 1, 1, d},
               {0, c.tied ? 0 : 1, c.vocab, d}}};
    for (Kind& kind : kinds_) {
      kind.offset = size_;
      size_ += kind.copies * kind.rows * kind.cols;
    }
    if (c.tied) kinds_[11].offset = 0;
  }

  Index size() const { return size_; }
  const Kind& kind(Weight w) const { return kinds_[static_cast<std::size_t>(w)]; }
  Index offset(Weight w, Index layer) const { return kind(w).offset + layer * kind(w).rows * kind(w).cols; }

 private:
  std::array<Kind, 12> kinds_{};
  Index size_ = 0;
};

/// Number of weights, in double so that a hostile header cannot overflow it (exact below 2^53).
inline double weight_count(const Config& c) {
  const double d = double(c.dim), h = double(c.hidden), kv = double(c.kv_dim()), v = double(c.vocab);
  return v * d * (c.tied ? 1 : 2) + double(c.layers) * (2 * d + 2 * d * d + 2 * kv * d + 3 * h * d) + d;
}

struct Tensor {
  std::string name;
  Index offset, rows, cols;
  bool norm;
};

/// Every tensor with the name that Hugging Face models give it. (q and k rows stay in llama2.c's rotary
/// order.)
inline std::vector<Tensor> tensors(const Config& c) {
  static constexpr std::array<const char*, 12> names = {"model.embed_tokens",
                                                        "input_layernorm",
                                                        "self_attn.q_proj",
                                                        "self_attn.k_proj",
                                                        "self_attn.v_proj",
                                                        "self_attn.o_proj",
                                                        "post_attention_layernorm",
                                                        "mlp.gate_proj",
                                                        "mlp.down_proj",
                                                        "mlp.up_proj",
                                                        "model.norm",
                                                        "lm_head"};
  const Layout layout(c);
  std::vector<Tensor> list;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Weight w = static_cast<Weight>(i);
    const bool in_layer = w != Weight::embed && w != Weight::norm_out && w != Weight::head;
    const Layout::Kind& kind = layout.kind(w);
    for (Index l = 0; l < kind.copies; ++l)
      list.push_back({(in_layer ? "model.layers." + std::to_string(l) + "." : "") + names[i] + ".weight",
                      layout.offset(w, l), kind.rows, kind.cols, kind.rows == 1});
  }
  return list;
}

}  // namespace llama
