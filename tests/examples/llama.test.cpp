// SPDX-License-Identifier: MIT
#if __has_include(<catch2/catch_all.hpp>)
#  include <catch2/catch_all.hpp>
#else
#  include <catch2/catch.hpp>
#endif

#include <unistd.h>

#include <bit>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>

#include "../../examples/llama/backward.hpp"
#include "../../examples/llama/decode.hpp"
#include "../../examples/llama/tokenizer.hpp"

using namespace llama;
namespace fs = std::filesystem;

namespace {

using Catch::Matchers::StartsWith;

/// A folder that goes with the test.
struct Folder {
  fs::path path = fs::temp_directory_path() / ("llama_test_" + std::to_string(::getpid()));
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

Config small(bool tied, Index kv_heads = 2) {
  return {.dim = 8,
          .hidden = 12,
          .layers = 2,
          .heads = 4,
          .kv_heads = kv_heads,
          .vocab = 11,
          .context = 16,
          .tied = tied};
}

template <class S>
Model<S> random_model(const Config& c, double sigma = 0.3) {
  Model<S> m(c);
  for (std::size_t i = 0; i < m.size(); ++i) m.weights[i] = S(sigma * detail::normal(7, i));
  for (const Tensor& t : tensors(c))
    if (t.norm)
      for (Index i = t.offset; i < t.offset + t.cols; ++i) m.weights[static_cast<std::size_t>(i)] += S(1);
  return m;
}

std::vector<int> random_tokens(std::size_t count, Index vocab, std::uint64_t seed = 1) {
  std::vector<int> tokens(count);
  for (std::size_t i = 0; i < count; ++i)
    tokens[i] = static_cast<int>(std::abs(std::lround(1e6 * detail::normal(seed, i))) % vocab);
  return tokens;
}

/// Adapters at every site, with weights for each (layer, site): additive y += tanh(x a) b of rank 1,
/// multiplicative y = x (l + u m(x)), m the causal mean of the row's own features, so that the shape of the
/// pass matters.
template <class S>
struct Toy {
  Config c;
  std::vector<S> theta, dtheta;
  std::vector<Site> sites;
  int calls = 0;

  Toy(const Config& config, std::vector<Site> which) : c(config), sites(std::move(which)) {
    theta.resize(static_cast<std::size_t>(c.layers) * 11 * room());
    for (std::size_t i = 0; i < theta.size(); ++i) theta[i] = S(0.3 * detail::normal(99, i));
    dtheta.assign(theta.size(), 0);
  }
  std::size_t room() const { return static_cast<std::size_t>(2 * (c.dim + c.hidden)); }
  std::size_t start(Index l, Site s) const {
    return (static_cast<std::size_t>(l) * 11 + static_cast<std::size_t>(s)) * room();
  }

  bool has(Index, Site s) const { return std::find(sites.begin(), sites.end(), s) != sites.end(); }
  void add(Index l, Site s, In<S> x, Out<S> y, const Pass&) {
    ++calls;
    const S *a = &theta[start(l, s)], *b = a + x.cols();
    for (Index t = 0; t < x.rows(); ++t) {
      S h = 0;
      for (Index i = 0; i < x.cols(); ++i) h += x(t, i) * a[i];
      for (Index j = 0; j < y.cols(); ++j) y(t, j) += std::tanh(h) * b[j];
    }
  }
  void add_backward(Index l, Site s, In<S> x, In<S> dy, Out<S> dx, const Pass&) {
    const S *a = &theta[start(l, s)], *b = a + x.cols();
    S *da = &dtheta[start(l, s)], *db = da + x.cols();
    for (Index t = 0; t < x.rows(); ++t) {
      S h = 0, dh = 0;
      for (Index i = 0; i < x.cols(); ++i) h += x(t, i) * a[i];
      h = std::tanh(h);
      for (Index j = 0; j < dy.cols(); ++j) {
        dh += dy(t, j) * b[j];
        db[j] += dy(t, j) * h;
      }
      dh *= 1 - h * h;
      for (Index i = 0; i < x.cols(); ++i) da[i] += dh * x(t, i);
      if (dx.data())
        for (Index i = 0; i < x.cols(); ++i) dx(t, i) += dh * a[i];
    }
  }
  static S causal_mean(In<S> x, Index t, const Pass& pass) {
    S sum = 0;
    for (Index k = t - t % pass.seq; k <= t; ++k) sum += x.row(k).sum();
    return sum / S(t % pass.seq + 1);
  }
  void scale(Index l, Site s, In<S> x, Out<S> y, const Pass& pass) {
    ++calls;
    const S *scale = &theta[start(l, s)], *u = scale + x.cols();
    for (Index t = 0; t < x.rows(); ++t)
      for (Index i = 0; i < x.cols(); ++i) y(t, i) = x(t, i) * (scale[i] + u[i] * causal_mean(x, t, pass));
  }
  void scale_backward(Index l, Site s, In<S> x, In<S> dy, Out<S> dx, const Pass& pass) {
    const S *scale = &theta[start(l, s)], *u = scale + x.cols();
    S *dscale = &dtheta[start(l, s)], *du = dscale + x.cols();
    for (Index t = 0; t < x.rows(); ++t) {
      const S m = causal_mean(x, t, pass);
      S dm = 0;
      for (Index i = 0; i < x.cols(); ++i) {
        dscale[i] += dy(t, i) * x(t, i);
        du[i] += dy(t, i) * x(t, i) * m;
        dm += dy(t, i) * x(t, i) * u[i];
        dx(t, i) += dy(t, i) * (scale[i] + u[i] * m);
      }
      for (Index k = t - t % pass.seq; k <= t; ++k)
        for (Index i = 0; i < x.cols(); ++i) dx(k, i) += dm / S(t % pass.seq + 1);
    }
  }
};

const std::vector<Site> additive = {Site::q, Site::k, Site::v, Site::o, Site::gate, Site::up, Site::down};
const std::vector<Site> multiplicative = {Site::key, Site::value, Site::gated, Site::down_input};

/// |g - g_fd|inf / max(1, |g|inf) over all entries of `theta`, by central differences of step 6e-6.
double difference(std::vector<double>& theta, const std::vector<double>& gradient,
                  const std::function<double()>& loss) {
  double worst = 0, largest = 1;
  for (std::size_t i = 0; i < theta.size(); ++i) {
    constexpr double h = 6e-6;
    const double kept = theta[i];
    theta[i] = kept + h;
    const double up = loss();
    theta[i] = kept - h;
    const double down = loss();
    theta[i] = kept;
    worst = std::max(worst, std::abs(gradient[i] - (up - down) / (2 * h)));
    largest = std::max(largest, std::abs(gradient[i]));
  }
  return worst / largest;
}

std::string message(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "nothing was thrown";
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void write_text(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}
template <class T>
std::string bytes_of(std::initializer_list<T> values) {
  return {reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T)};
}

/// The folder of the data files, or empty after a message.
std::string data() {
  const char* folder = std::getenv("MOXIE_DATA");
  if (!folder) WARN("skipped: MOXIE_DATA does not name the folder of stories260K.bin and tok512.bin");
  return folder ? std::string(folder) + "/" : "";
}

struct Result {
  std::vector<float> logits, weights, hooks;
  bool operator==(const Result&) const = default;
};

template <class H>
Result step(const Model<float>& m, H& hooks, int threads, std::span<const int> tokens,
            std::span<const int> targets, Index rows) {
  State<float> state;
  Gradients<float> g;
  Matrix<float> d;
  Result r;
  const Index seq = static_cast<Index>(tokens.size()) / rows;
  forward(m, tokens, {.rows = rows, .seq = seq, .training = true, .threads = threads}, state, hooks);
  cross_entropy(state, targets, &d);
  r.weights.assign(m.size(), 0);
  backward(m, state, d, g, hooks, std::span<float>(r.weights));
  r.logits.assign(state.logits.data(), state.logits.data() + state.logits.size());
  r.hooks = hooks.dtheta;
  return r;
}

}  // namespace

TEST_CASE("the gradients of all weights and hooks are those of central differences", "[llama]") {
  const bool tied = GENERATE(true, false);
  const Index kv_heads = GENERATE(Index{2}, Index{4});
  std::vector<Site> sites = GENERATE(std::vector<Site>{}, additive, multiplicative,
                                     std::vector<Site>{Site::k, Site::key, Site::down_input, Site::down});
  CAPTURE(tied, kv_heads, sites.size());
  Model<double> m = random_model<double>(small(tied, kv_heads));
  Toy<double> toy(m.config, sites);
  const Pass pass{.rows = 2, .seq = 5, .training = true};
  const std::vector<int> tokens = random_tokens(10, 11);
  std::vector<int> targets = random_tokens(10, 11, 2);
  targets[4] = targets[5] = -1;
  State<double> state;
  const auto loss = [&] {
    forward(m, tokens, pass, state, toy);
    return total(cross_entropy(state, targets)).mean();
  };
  loss();
  Matrix<double> dlogits;
  cross_entropy(state, targets, &dlogits);
  Gradients<double> g;
  std::vector<double> dw(m.size(), 0.0);
  backward(m, state, dlogits, g, toy, std::span<double>(dw));
  CHECK(difference(m.weights, dw, loss) <= 1e-8);
  if (!sites.empty()) {
    const std::vector<double> dtheta = toy.dtheta;
    CHECK(difference(toy.theta, dtheta, loss) <= 1e-8);

    std::fill(toy.dtheta.begin(), toy.dtheta.end(), 0.0);
    loss();
    backward(m, state, dlogits, g, toy);
    INFO("a frozen base gives the hooks the same gradient");
    CHECK(toy.dtheta == dtheta);
  }
}

TEST_CASE("gradients accumulate into what the caller has", "[llama]") {
  const Model<double> m = random_model<double>(small(true));
  const std::vector<int> tokens = random_tokens(10, 11), targets = random_tokens(10, 11, 2);
  State<double> state;
  Gradients<double> g;
  Matrix<double> d;
  NoHooks none;
  forward(m, tokens, {.rows = 2, .seq = 5, .training = true}, state, none);
  cross_entropy(state, targets, &d);
  std::vector<double> once(m.size(), 0.0), twice(m.size(), 0.0);
  backward(m, state, d, g, none, std::span<double>(once));
  backward(m, state, d, g, none, std::span<double>(twice));
  backward(m, state, d, g, none, std::span<double>(twice));
  for (std::size_t i = 0; i < once.size(); ++i)
    CHECK_THAT(twice[i], Catch::Matchers::WithinAbs(2 * once[i], 1e-12));
}

TEST_CASE("the number of threads changes no bit", "[llama]") {
  const Config c = {.dim = 24,
                    .hidden = 70,
                    .layers = 2,
                    .heads = 4,
                    .kv_heads = 2,
                    .vocab = 130,
                    .context = 32,
                    .tied = GENERATE(true, false)};
  const Model<float> m = random_model<float>(c, 0.2);
  const std::vector<int> tokens = random_tokens(7 * 19, c.vocab), targets = random_tokens(7 * 19, c.vocab, 2);
  std::vector<Site> sites = additive;
  sites.insert(sites.end(), multiplicative.begin(), multiplicative.end());
  Toy<float> one(c, sites), two(c, sites), three(c, sites);
  const Result expected = step(m, one, 1, tokens, targets, 7);
  CHECK(step(m, two, 2, tokens, targets, 7) == expected);
  CHECK(step(m, three, 3, tokens, targets, 7) == expected);
}

TEMPLATE_TEST_CASE("a sequence gets the same bits in any company", "[llama]", float, double) {
  using S = TestType;
  const Index seq = GENERATE(Index{1}, Index{2}, Index{5}, Index{15});
  const Config c = GENERATE(small(true), small(false),
                            Config{.dim = 24,
                                   .hidden = 70,
                                   .layers = 2,
                                   .heads = 4,
                                   .kv_heads = 2,
                                   .vocab = 130,
                                   .context = 32,
                                   .tied = true});
  CAPTURE(seq, c.dim);
  const Model<S> m = random_model<S>(c);
  const std::vector<int> tokens = random_tokens(static_cast<std::size_t>(6 * seq), c.vocab);
  State<S> all, alone;
  NoHooks none;
  forward(m, tokens, {.rows = 6, .seq = seq}, all, none);
  for (Index s = 0; s < 6; ++s) {
    const std::span<const int> mine =
        std::span(tokens).subspan(static_cast<std::size_t>(s * seq), static_cast<std::size_t>(seq));
    forward(m, mine, {.rows = 1, .seq = seq}, alone, none);
    CHECK((alone.logits.array() == all.logits.middleRows(s * seq, seq).array()).all());
  }
}

TEST_CASE("padding after a sequence changes neither its loss nor its gradient", "[llama]") {
  const Model<double> m = random_model<double>(small(true));
  const std::vector<int> tokens = random_tokens(6, 11), targets = random_tokens(6, 11, 2);
  const auto run = [&](Index seq, std::vector<double>& dw) {
    std::vector<int> padded(tokens), ignored(targets);
    padded.resize(static_cast<std::size_t>(seq), 3);
    ignored.resize(static_cast<std::size_t>(seq), -1);
    State<double> state;
    Gradients<double> g;
    Matrix<double> d;
    NoHooks none;
    forward(m, padded, {.rows = 1, .seq = seq, .training = true}, state, none);
    const Loss loss = total(cross_entropy(state, ignored, &d));
    dw.assign(m.size(), 0.0);
    backward(m, state, d, g, none, std::span<double>(dw));
    CHECK(loss.count == 6);
    return loss.mean();
  };
  std::vector<double> plain, padded;
  CHECK_THAT(run(6, plain), Catch::Matchers::WithinRel(run(13, padded), 1e-12));
  for (std::size_t i = 0; i < plain.size(); ++i)
    CHECK_THAT(plain[i], Catch::Matchers::WithinAbs(padded[i], 1e-12));
}

TEST_CASE("inference leaves the logits of training", "[llama]") {
  const Model<float> m = random_model<float>(small(true));
  const std::vector<int> tokens = random_tokens(12, 11);
  State<float> training, inference;
  Toy<float> toy(m.config, additive);
  forward(m, tokens, {.rows = 2, .seq = 6, .training = true}, training, toy);
  forward(m, tokens, {.rows = 2, .seq = 6}, inference, toy);
  CHECK(training.logits == inference.logits);
}

TEST_CASE("no targets mean no loss and no gradient", "[llama]") {
  const Model<double> m = random_model<double>(small(true));
  State<double> state;
  Matrix<double> d;
  NoHooks none;
  forward(m, random_tokens(4, 11), {.rows = 1, .seq = 4}, state, none);
  CHECK(total(cross_entropy(state, std::vector<int>(4, -1), &d)).mean() == 0);
  CHECK(d.isZero(0));
}

TEST_CASE("cached decoding gives the logits of the whole sequence", "[llama]") {
  const Model<float> m = random_model<float>(small(GENERATE(true, false)));
  const std::vector<int> tokens = random_tokens(24, 11);
  State<float> whole, part_state;
  Toy<float> toy(m.config, additive);
  forward(m, tokens, {.rows = 2, .seq = 12}, whole, toy);
  const Index chunk = GENERATE(Index{1}, Index{3}, Index{4});
  KeyValues<float> past(m.config, 2, 12);
  for (Index first = 0; first < 12; first += chunk) {
    std::vector<int> now;
    for (Index s = 0; s < 2; ++s)
      for (Index t = 0; t < chunk; ++t) now.push_back(tokens[static_cast<std::size_t>(s * 12 + first + t)]);
    forward(m, now, {.rows = 2, .seq = chunk, .first = first}, part_state, toy, &past);
    for (Index s = 0; s < 2; ++s)
      CHECK((part_state.logits.middleRows(s * chunk, chunk) - whole.logits.middleRows(s * 12 + first, chunk))
                .cwiseAbs()
                .maxCoeff() < 2e-5f * (1 + whole.logits.cwiseAbs().maxCoeff()));
  }
}

TEST_CASE("many prompts of different lengths are continued as each alone", "[llama]") {
  const Model<float> m = random_model<float>(small(true), 1.0);
  NoHooks none;
  const std::vector<std::vector<int>> prompts = {{1}, {2, 3, 4, 5}, {6, 7}, {8, 9, 10, 1, 2, 3, 4}};
  const Generate options{.length = 14, .stop = 5};
  const auto together = generate(m, prompts, options, none);
  for (std::size_t s = 0; s < prompts.size(); ++s)
    CHECK(generate(m, {prompts[s]}, options, none)[0] == together[s]);
  CHECK(together[1].size() == 3);  // the stop token ends even a prompt
  CHECK(generate(m, {}, options, none).empty());
}

TEST_CASE("hooks are called at the sites they have and nowhere else", "[llama]") {
  const Model<float> m = random_model<float>(small(true));
  Toy<float> toy(m.config, {Site::q, Site::gated});
  State<float> state;
  forward(m, random_tokens(4, 11), {.rows = 1, .seq = 4}, state, toy);
  CHECK(toy.calls == 4);
  CHECK(state.layers[0].gated_scaled.size() > 0);
  CHECK(state.layers[0].key.size() == 0);
  CHECK(state.layers[0].h_scaled.size() == 0);
}

TEST_CASE("sizes that do not fit are refused", "[llama]") {
  const Model<float> m = random_model<float>(small(true));
  State<float> state;
  NoHooks none;
  KeyValues<float> past(m.config, 1, 8);
  const std::vector<int> four = {1, 2, 3, 4}, wrong = {1, 2, 3, 11};
  const auto run = [&](std::span<const int> tokens, Pass pass, KeyValues<float>* cache = nullptr) {
    return message([&] { forward(m, tokens, pass, state, none, cache); });
  };
  CHECK(run(four, {.rows = 0, .seq = 4}) == "llama: rows: got 0, wanted at least 1");
  CHECK(run(four, {.rows = 1, .seq = 17}) == "llama: positions: got 17, wanted 1 to 16");
  CHECK(run(four, {.rows = 1, .seq = 3}) == "llama: tokens: got 4, wanted 3");
  CHECK(run(wrong, {.rows = 1, .seq = 4}) == "llama: token: got 11, wanted 0 to 10");
  CHECK_THAT(run(four, {.rows = 1, .seq = 4, .first = 1}), StartsWith("llama: first: got 1"));
  CHECK_THAT(run(four, {.rows = 2, .seq = 2}, &past), StartsWith("llama: rows of the cache: got 1"));
  CHECK(run(four, {.rows = 1, .seq = 4}) == "nothing was thrown");
  CHECK_THAT(message([&] {
               cross_entropy(state, std::vector<int>{1, 2, 3, 11});
             }),
             StartsWith("llama: target: got 11"));
  Gradients<float> g;
  CHECK_THAT(message([&] { backward(m, state, state.logits, g, none); }),
             StartsWith("llama: layers of the state"));
}

TEST_CASE("a checkpoint is read back as it was written", "[llama]") {
  const Folder folder;
  const Config c = small(GENERATE(true, false));
  const Model<double> m = random_model<double>(c);
  write_checkpoint(folder / "m.bin", c, m.single());
  const Checkpoint file = read_checkpoint(folder / "m.bin");
  CHECK(file.config == c);
  CHECK(file.weights == m.single());
  CHECK_FALSE(fs::exists(folder / "m.bin.part"));

  // The same file without the rotary tables.
  const std::string bytes = read_text(folder / "m.bin");
  const std::size_t head = c.tied ? 0 : 11 * 8 * 4, tables = 16 * 1 * 2 * 4;
  write_text(folder / "short.bin",
             bytes.substr(0, bytes.size() - head - tables) + bytes.substr(bytes.size() - head));
  CHECK(read_checkpoint(folder / "short.bin").weights == file.weights);
}

TEST_CASE("bad checkpoints get one clear error", "[llama]") {
  const Folder folder;
  const Config c = small(true);
  const Model<float> m = random_model<float>(c);
  const std::string path = folder / "bad.bin";
  write_checkpoint(folder / "good.bin", c, m.weights);
  const std::string good = read_text(folder / "good.bin");
  const auto error = [&](const std::string& bytes) {
    write_text(path, bytes);
    return message([&] { read_checkpoint(path); });
  };
  const auto header = [&](std::initializer_list<std::int32_t> h) {
    return error(bytes_of(h) + good.substr(28));
  };

  CHECK(message([&] { read_checkpoint(folder / "none.bin"); }) ==
        (folder / "none.bin") + ": file: got nothing there, wanted a regular file");
  CHECK_THAT(message([&] { read_checkpoint(folder.path.string()); }),
             StartsWith(folder.path.string() + ": file"));
  CHECK_THAT(error(""), StartsWith(path + ": size: got 0 bytes, wanted a header of 28 bytes"));
  CHECK_THAT(error(good.substr(0, 27)), StartsWith(path + ": size: got 27 bytes"));
  CHECK_THAT(error(good.substr(0, good.size() - 1)),
             StartsWith(path + ": size: got " + std::to_string(good.size() - 1) + " bytes, wanted " +
                        std::to_string(good.size()) + " bytes"));
  CHECK_THAT(error(good + "x"), StartsWith(path + ": size: got"));
  CHECK_THAT(header({8, 12, 2, 3, 2, 11, 16}),
             StartsWith(path + ": heads: got 3, wanted a divisor of dim 8"));
  CHECK_THAT(header({8, 12, 2, 4, 3, 11, 16}),
             StartsWith(path + ": kv_heads: got 3, wanted a divisor of heads 4"));
  CHECK_THAT(header({8, 12, 2, 8, 2, 11, 16}),
             StartsWith(path + ": dim / heads: got 1, wanted an even number"));
  CHECK_THAT(header({0, 12, 2, 4, 2, 11, 16}), StartsWith(path + ": dim: got 0"));
  CHECK_THAT(header({8, -12, 2, 4, 2, 11, 16}), StartsWith(path + ": hidden: got -12"));
  CHECK_THAT(header({8, 12, 0, 4, 2, 11, 16}), StartsWith(path + ": layers: got 0"));
  CHECK_THAT(header({8, 12, 2, 0, 2, 11, 16}), StartsWith(path + ": heads: got 0"));
  CHECK_THAT(header({8, 12, 2, 4, 0, 11, 16}), StartsWith(path + ": kv_heads: got 0"));
  CHECK_THAT(header({8, 12, 2, 4, 2, 0, 16}), StartsWith(path + ": vocab: got 0"));
  CHECK_THAT(header({8, 12, 2, 4, 2, std::numeric_limits<std::int32_t>::min(), 16}),
             StartsWith(path + ": vocab: got 2147483648"));
  CHECK_THAT(header({8, 12, 2, 4, 2, 11, 0}), StartsWith(path + ": context: got 0"));
  CHECK_THAT(header({8, 12, 2, 4, 2, 11, 2147483647}), StartsWith(path + ": context: got 2147483647"));
  CHECK_THAT(header({8, 12, 2, 4, 2, -11, 16}), StartsWith(path + ": size: got"));
  CHECK_THAT(header({2147483646, 2147483647, 2147483647, 1, 1, 2147483647, 16}),
             StartsWith(path + ": size: got"));
  const float infinite = std::numeric_limits<float>::infinity();
  std::string bytes = good;
  std::memcpy(bytes.data() + 28 + 4 * Layout(c).offset(Weight::q, 1) + 4 * 5, &infinite, 4);
  CHECK(error(bytes) ==
        path + ": model.layers.1.self_attn.q_proj.weight[5]: got inf, wanted a finite weight");

  CHECK_THAT(message([&] { write_checkpoint(path, c, std::vector<float>(3)); }),
             StartsWith(path + ": weights: got 3"));
  CHECK_THAT(message([&] { write_checkpoint(folder / "no/such/folder.bin", c, m.weights); }),
             StartsWith(folder / "no/such/folder.bin: writing"));
}

TEST_CASE("bytes are their own tokens", "[llama]") {
  const ByteTokenizer bytes;
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  CHECK(bytes.encode(all).size() == 256);
  CHECK(bytes.decode(bytes.encode(all)) == all);
}

TEST_CASE("bad tokenizers get one clear error", "[llama]") {
  const Folder folder;
  const std::string path = folder / "tok.bin";
  const auto token = [](float score, std::int32_t length, const std::string& text) {
    return bytes_of({score}) + bytes_of({length}) + text;
  };
  std::string good = bytes_of({std::int32_t{4}});
  for (int i = 0; i < 260; ++i) good += token(-1.0f, 2, "ab");
  const auto error = [&](const std::string& bytes) {
    write_text(path, bytes);
    return message([&] { BpeTokenizer t(path); });
  };
  CHECK(error(good) == "nothing was thrown");
  CHECK_THAT(message([&] { BpeTokenizer t(folder / "none.bin"); }),
             StartsWith(folder / "none.bin: file: got nothing there"));
  CHECK_THAT(error(""), StartsWith(path + ": token 0: got the end of the file"));
  CHECK_THAT(error(good.substr(0, good.size() - 1)), StartsWith(path + ": token 259: got length 2"));
  CHECK_THAT(error(good.substr(0, good.size() - 7)),
             StartsWith(path + ": token 259: got the end of the file"));
  CHECK_THAT(error(good + token(0, -1, "")), StartsWith(path + ": token 260: got length -1"));
  CHECK_THAT(error(good + token(0, 5, "abcde")), StartsWith(path + ": token 260: got length 5"));
  CHECK_THAT(error(good + token(std::nanf(""), 1, "a")), StartsWith(path + ": token 260: got score"));
  CHECK_THAT(error(good.substr(0, 4 + 10 * 258)), StartsWith(path + ": tokens: got 258"));
  write_text(path, good);
  CHECK(message([&] { make_tokenizer(small(true), path); }) ==
        path + ": tokenizer: got 260 tokens, wanted 11, the vocabulary of the model");
  CHECK_THAT(message([&] { make_tokenizer(small(true), ""); }), StartsWith(": file"));
}

TEST_CASE("byte pairs are merged as by run.c, in any text", "[llama][data]") {
  if (data().empty()) return;
  const BpeTokenizer tokenizer(data() + "tok512.bin");
  CHECK(tokenizer.encode("") == std::vector<int>{1});

  // run.c's own loop: the best pair of the whole text, the leftmost of equals, until there is none.
  std::ifstream in(data() + "tok512.bin", std::ios::binary);
  std::vector<std::string> pieces;
  std::vector<float> scores;
  std::map<std::string, int> ids;
  std::int32_t n = 0;
  for (in.ignore(4);;) {
    float score = 0;
    if (!in.read(reinterpret_cast<char*>(&score), 4).read(reinterpret_cast<char*>(&n), 4)) break;
    std::string text(static_cast<std::size_t>(n), '\0');
    in.read(text.data(), n);
    ids.emplace(text, static_cast<int>(pieces.size()));
    pieces.push_back(text);
    scores.push_back(score);
  }
  const auto naive = [&](const std::string& text) {
    std::vector<int> tokens = {1, ids.at(" ")};
    for (std::size_t i = 0, end = 0; i < text.size(); i = end) {
      end = i + 1;
      while (end < text.size() && (text[end] & 0xC0) == 0x80 && end - i < 4) ++end;
      const auto it = ids.find(text.substr(i, end - i));
      if (it != ids.end())
        tokens.push_back(it->second);
      else
        for (std::size_t k = i; k < end; ++k) tokens.push_back(static_cast<unsigned char>(text[k]) + 3);
    }
    for (;;) {
      float best = -1e10f;
      std::size_t at = tokens.size();
      int id = -1;
      for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
        const auto it = ids.find(pieces[static_cast<std::size_t>(tokens[i])] +
                                 pieces[static_cast<std::size_t>(tokens[i + 1])]);
        if (it != ids.end() && scores[static_cast<std::size_t>(it->second)] > best)
          best = scores[static_cast<std::size_t>(it->second)], at = i, id = it->second;
      }
      if (id < 0) return tokens;
      tokens[at] = id;
      tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
  };
  std::string all_bytes, mixed;
  for (int i = 255; i > 0; --i) all_bytes += static_cast<char>(i);
  for (std::size_t i = 0; i < 600; ++i)
    mixed += "aaab  ehnort\n\xc3\xa9\xe2\x82\xac"[static_cast<std::size_t>(random_tokens(1, 18, i)[0])];
  for (const std::string& text : {std::string("Once upon a time, there was a little girl named Lily."),
                                  std::string("aaaaaaa  the thethe"),
                                  std::string("Zażółć gęślą jaźń \xf0\x9f\x99\x82 x"), all_bytes, mixed}) {
    CHECK(tokenizer.encode(text) == naive(text));
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

TEST_CASE("stories260K tells its greedy story byte for byte", "[llama][data]") {
  if (data().empty()) return;
  const Checkpoint file = read_checkpoint(data() + "stories260K.bin");
  CHECK(file.config == Config{.dim = 64,
                              .hidden = 172,
                              .layers = 5,
                              .heads = 8,
                              .kv_heads = 4,
                              .vocab = 512,
                              .context = 512,
                              .tied = true});
  const auto tokenizer = make_tokenizer(file.config, data() + "tok512.bin");
  NoHooks none;
  const Generate options{.length = 257, .stop = 1};
  const auto story = generate(Model<float>(file), {tokenizer->encode("")}, options, none)[0];
  CHECK(tokenizer->decode(story) + "\n" == read_text(data() + "stories260K.greedy.txt"));
  CHECK(generate(Model<double>(file), {tokenizer->encode("")}, options, none)[0] == story);

  const Folder folder;
  write_checkpoint(folder / "copy.bin", file.config, file.weights);
  CHECK(fs::file_size(folder / "copy.bin") == fs::file_size(data() + "stories260K.bin"));
  CHECK(read_checkpoint(folder / "copy.bin").weights == file.weights);

  // Scored in one pass, the story is what the model finds likeliest at every place.
  State<float> state;
  const Model<float> m(file);
  forward(m, std::span(story).first(256), {.rows = 1, .seq = 256}, state, none);
  int same = 0;
  for (Index t = 0; t < 256; ++t) same += greedy(state.logits, t) == story[static_cast<std::size_t>(t) + 1];
  CHECK(same == 256);
}
