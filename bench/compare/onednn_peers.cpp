// SPDX-License-Identifier: MIT
// The products of the concatenated form by oneDNN; gates by ours of concat.hpp.
#include "concat.hpp"

#include <oneapi/dnnl/dnnl.hpp>

#include <array>
#include <map>
#include <memory>

namespace compare {
namespace {

void check(dnnl_status_t status) {
  if (status != dnnl_success) throw std::runtime_error("oneDNN: status " + std::to_string(status));
}

struct Sgemm {
  void operator()(bool ta, bool tb, Index m, Index n, Index k, float alpha, const float* a, Index lda,
                  const float* b, Index ldb, float beta, float* c, Index ldc) const {
    check(dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc));
  }
};

/// The matmul primitive, accumulating by a sum. Primitives are made once for each shape.
class Matmul {
 public:
  void operator()(bool ta, bool tb, Index m, Index n, Index k, float alpha, const float* a, Index lda,
                  const float* b, Index ldb, float beta, float* c, Index ldc) {
    const std::array<Index, 8> key{ta, tb, m, n, k, beta != 0, alpha != 1, ldc};
    auto found = made_->find(key);
    if (found == made_->end()) found = made_->emplace(key, make(key, alpha, lda, ldb)).first;
    Made& made = found->second;
    made.a.set_data_handle(const_cast<float*>(a));
    made.b.set_data_handle(const_cast<float*>(b));
    made.c.set_data_handle(c);
    made.matmul.execute(stream_, made.arguments);
  }

 private:
  struct Made {
    dnnl::matmul matmul;
    dnnl::memory a, b, c;
    std::unordered_map<int, dnnl::memory> arguments;
  };
  Made make(const std::array<Index, 8>& key, float alpha, Index lda, Index ldb) {
    const auto [ta, tb, m, n, k, adds, scaled, ldc] = key;
    const auto desc = [](Index rows, Index cols, bool transposed, Index ld) {
      return dnnl::memory::desc({rows, cols}, dnnl::memory::data_type::f32,
                                transposed ? dnnl::memory::dims{1, ld} : dnnl::memory::dims{ld, 1});
    };
    const auto a = desc(m, k, ta != 0, lda), b = desc(k, n, tb != 0, ldb), c = desc(m, n, false, ldc);
    dnnl::primitive_attr attributes;
    if (scaled != 0) attributes.set_output_scales(0, {alpha});
    if (adds != 0) {
      dnnl::post_ops sum;
      sum.append_sum(1);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc described({a, b, c}, attributes, engine_);
    Made made{dnnl::matmul(described),
              dnnl::memory(a, engine_, nullptr),
              dnnl::memory(b, engine_, nullptr),
              dnnl::memory(c, engine_, nullptr),
              {}};
    made.arguments = {{DNNL_ARG_SRC, made.a}, {DNNL_ARG_WEIGHTS, made.b}, {DNNL_ARG_DST, made.c}};
    return made;
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::shared_ptr<std::map<std::array<Index, 8>, Made>> made_ =
      std::make_shared<std::map<std::array<Index, 8>, Made>>();
};

template <class Gemm>
Variant variant(const std::string& name, Problem& problem) {
  auto state = std::make_shared<Concat<Gemm>>(problem, Gemm{}, problem.cell.tokens, 1);
  Variant v{.name = name, .call = [state](Index copy) { state->call(copy); }};
  if (problem.cell.backward) v.gradient = [state] { return state->gradient(); };
  return v;
}

}  // namespace

Contestants onednn_peers(Problem& problem) {
  if (!problem.cell.lora_kind()) return {};
  return {
      {.name = "onednn", .variants = {variant<Sgemm>("sgemm", problem), variant<Matmul>("matmul", problem)}}};
}

std::string onednn_version() {
  const dnnl_version_t* v = dnnl_version();
  return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

}  // namespace compare
