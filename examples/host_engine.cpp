// SPDX-License-Identifier: MIT
// moxie inside an inference engine that has plain float buffers. One batch carries requests on different LoRA
// adapters, at different strengths or on none, and what each uses changes between two decoding steps. Every
// request must get, bit for bit, what it gets when it runs alone with a plain LoRA.
#include <moxie/moxie.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

std::vector<float> random_weights(int n, float size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> weights;
  for (int i = 0; i < n; ++i) weights.push_back(size * (static_cast<float>(random() % 2001) / 1000 - 1));
  return weights;
}

/// A toy of a decoder, of two linear layers. It knows nothing of adapters.
struct Engine {
  static constexpr int width = 48, vocabulary = 26;
  static constexpr int in[] = {width, width}, out[] = {width, vocabulary};
  const std::vector<float> embedding = random_weights(vocabulary * width, 1.0f, 1);
  const std::vector<float> weight[2] = {random_weights(in[0] * out[0], 0.25f, 2),
                                        random_weights(in[1] * out[1], 0.25f, 3)};

  static void matvec(const float* w, const float* x, float* y, int n_out, int n_in) {
    for (int o = 0; o < n_out; ++o) {
      float sum = 0;
      for (int i = 0; i < n_in; ++i) sum += w[o * n_in + i] * x[i];
      y[o] = sum;
    }
  }

  /// One step of `rows` requests, from and to each one's state and last token; `after_layer(layer, x, y)` may
  /// add to what a layer made of x.
  void step(int rows, float* state, int* token, float* logits, const auto& after_layer) const {
    std::vector<float> hidden(static_cast<std::size_t>(rows * width));
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < width; ++i)
        state[r * width + i] = 0.5f * state[r * width + i] + embedding.data()[token[r] * width + i];
    for (int r = 0; r < rows; ++r)
      matvec(weight[0].data(), state + r * width, hidden.data() + r * width, out[0], in[0]);
    after_layer(0, state, hidden.data());
    for (float& h : hidden) h = std::max(h, 0.0f);
    for (int r = 0; r < rows; ++r)
      matvec(weight[1].data(), hidden.data() + r * width, logits + r * vocabulary, out[1], in[1]);
    after_layer(1, hidden.data(), logits);
    for (int r = 0; r < rows; ++r) {
      const float* const z = logits + r * vocabulary;
      token[r] = static_cast<int>(std::max_element(z, z + vocabulary) - z);
    }
  }
};

/// A LoRA as its file has it: per layer A [rank, in] and B [out, rank].
struct LoraFile {
  char name;
  int rank;
  double alpha;
  std::vector<float> a[2], b[2];
};
LoraFile lora_file(char name, int rank, double alpha, unsigned seed) {
  LoraFile file{name, rank, alpha, {}, {}};
  for (const int layer : {0, 1}) {
    file.a[layer] = random_weights(rank * Engine::in[layer], 0.2f, seed++);
    file.b[layer] = random_weights(Engine::out[layer] * rank, 0.2f, seed++);
  }
  return file;
}

/// What is loaded: for each layer of the engine a module, a bank with one expert per file.
struct Adapters {
  std::vector<LoraFile> files;
  moxie::AdapterSet<float> set;
  moxie::Module module[2];
  moxie::Cache<float> cache[2];
  moxie::Workspace<float> workspace;

  explicit Adapters(std::vector<LoraFile> loaded) : files(std::move(loaded)) {
    if (files.empty()) return;
    moxie::LoraBank<float>::Config config{.experts = std::ssize(files), .scaling = moxie::LoraScaling::fixed};
    for (const LoraFile& file : files) {
      config.ranks.push_back(file.rank);
      config.scales.push_back(file.alpha / file.rank);
    }
    std::vector<moxie::LoraBank<float>> banks;
    for (const int layer : {0, 1}) {
      config.in = Engine::in[layer];
      config.out = Engine::out[layer];
      banks.emplace_back(config);
      const moxie::GivenRouter<float> router({.experts = config.experts});
      module[layer] = set.add("layer" + std::to_string(layer), moxie::MoeAdapter(banks.back(), router));
    }
    set.init(0);
    for (const int layer : {0, 1}) load(layer, banks[static_cast<std::size_t>(layer)]);
  }

  /// A bank has all experts' A in one matrix [ranks, in], then their B, transposed, in one [ranks, out].
  void load(int layer, const moxie::LoraBank<float>& bank) {
    float* a = set.theta(module[layer]).data();
    float* b = a + bank.total_rank() * bank.in();
    for (const LoraFile& file : files) {
      a = std::copy(file.a[layer].begin(), file.a[layer].end(), a);
      for (int j = 0; j < file.rank; ++j)
        for (int o = 0; o < Engine::out[layer]; ++o) *b++ = file.b[layer].data()[o * file.rank + j];
    }
  }

  /// y += the adapters of x, row by row as `gates` [rows, files] says.
  void apply(int layer, const float* x, float* y, const moxie::Matrix<float>& gates) {
    if (files.empty()) return;
    moxie::give_gates<float>(cache[layer].routing, gates);
    set.forward(module[layer], {x, gates.rows(), Engine::in[layer]}, {y, gates.rows(), Engine::out[layer]},
                cache[layer], workspace);
  }
};

/// What the server wants of the four requests, for some steps at a time.
struct Phase {
  bool on[2];      // the modules of the two layers
  float scale[4];  // of each request's adapter
};
constexpr Phase phases[] = {{{true, true}, {1, 1, 0, 0.5f}},  //
                            {{true, true}, {1, 2, 0, 0}},     //
                            {{false, true}, {1, 2, 0, 1.5f}}};
constexpr char adapter_of[] = {'A', 'B', '-', 'A'};
constexpr int phase_steps = 8, steps = phase_steps * static_cast<int>(std::size(phases));

/// The logits [requests, steps, vocabulary] of some requests, decoded as one batch.
std::vector<float> decode(const Engine& engine, Adapters& adapters, const std::vector<int>& requests) {
  const int rows = static_cast<int>(requests.size()), vocabulary = Engine::vocabulary;
  std::vector<float> state(requests.size() * Engine::width), logits(requests.size() * vocabulary);
  std::vector<float> all(logits.size() * steps);
  std::vector<int> token = requests;  // request r begins with token r
  moxie::Matrix<float> gates(rows, std::ssize(adapters.files));
  for (int step = 0; step < steps; ++step) {
    const Phase& phase = phases[step / phase_steps];
    for (int layer = 0; layer < adapters.set.modules(); ++layer)
      adapters.set.enable(adapters.module[layer], phase.on[layer]);
    for (int row = 0; row < rows; ++row)
      for (int e = 0; e < gates.cols(); ++e) {
        const int request = requests.data()[row];
        gates(row, e) = adapters.files.data()[e].name == adapter_of[request] ? phase.scale[request] : 0;
      }
    engine.step(rows, state.data(), token.data(), logits.data(),
                [&](int layer, const float* x, float* y) { adapters.apply(layer, x, y, gates); });
    for (int row = 0; row < rows; ++row)
      std::copy_n(logits.data() + row * vocabulary, vocabulary,
                  all.data() + (row * steps + step) * vocabulary);
  }
  return all;
}

int main() {
  const Engine engine;
  const LoraFile a = lora_file('A', 4, 8, 10), b = lora_file('B', 2, 4, 20);
  Adapters both({a, b});
  const std::vector<float> together = decode(engine, both, {0, 1, 2, 3});

  std::vector<float> alone[4];
  for (const int request : {0, 1, 2, 3}) {
    Adapters own(adapter_of[request] == 'A'   ? std::vector{a}
                 : adapter_of[request] == 'B' ? std::vector{b}
                                              : std::vector<LoraFile>{});
    alone[request] = decode(engine, own, {request});
  }
  bool all_same = true;
  std::printf("steps   layers  request  adapter  scale  decoded   same bits as alone\n");
  for (int first = 0; first < steps; first += phase_steps) {
    const Phase& phase = phases[first / phase_steps];
    for (const int request : {0, 1, 2, 3}) {
      const int n = phase_steps * Engine::vocabulary;
      const float* const logits = together.data() + (request * steps + first) * Engine::vocabulary;
      const bool same = std::memcmp(logits, alone[request].data() + first * Engine::vocabulary,
                                    sizeof(float) * static_cast<std::size_t>(n)) == 0;
      all_same = all_same && same;
      std::string text;
      for (const float* z = logits; z < logits + n; z += Engine::vocabulary)
        text += static_cast<char>('a' + (std::max_element(z, z + Engine::vocabulary) - z));
      std::printf("%2d-%2d   %s%s     %d        %c        %3.1f    %s  %s\n", first, first + phase_steps - 1,
                  phase.on[0] ? "0 " : "- ", phase.on[1] ? "1" : "-", request, adapter_of[request],
                  static_cast<double>(phase.scale[request]), text.c_str(), same ? "yes" : "NO");
    }
  }
  return all_same ? 0 : 1;
}
