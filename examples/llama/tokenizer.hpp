// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cctype>
#include <memory>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint.hpp"

namespace llama {

/// Text to tokens and back. `begin()` starts every sequence; -1: the tokenizer has no such token.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual int vocab() const = 0;
  virtual int begin() const = 0;
  /// The tokens of a text, after `begin()` where there is one.
  virtual std::vector<int> encode(std::string_view text) const = 0;
  /// The bytes that `token` stands for after `previous`.
  virtual std::string piece(int previous, int token) const = 0;

  std::string decode(const std::vector<int>& tokens) const {
    std::string text;
    int previous = -1;
    for (const int token : tokens) {
      if (token != begin()) text += piece(previous, token);
      previous = token;
    }
    return text;
  }
};

/// One token for each byte.
class ByteTokenizer final : public Tokenizer {
 public:
  int vocab() const override { return 256; }
  int begin() const override { return -1; }
  std::vector<int> encode(std::string_view text) const override {
    std::vector<int> tokens;
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
    return tokens;
  }
  std::string piece(int, int token) const override { return std::string(1, static_cast<char>(token)); }
};

/// llama2.c's byte-pair tokenizer: int32 longest, then for each token a float score, an int32 length and the
/// bytes. Token 1 begins a text, 3 + b stands for the byte b.
class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(const std::string& path) {
    std::uintmax_t bytes = 0;
    std::ifstream in = detail::open(path, bytes);
    if (bytes > (std::uintmax_t{1} << 28))
      detail::bad_file(path, "size", std::to_string(bytes) + " bytes", "a tokenizer file of at most 256 MB");
    std::string data(static_cast<std::size_t>(bytes), '\0');
    if (!in.read(data.data(), static_cast<std::streamsize>(bytes)) && bytes > 0)
      detail::bad_file(path, "reading", "a failed read", std::to_string(bytes) + " bytes");
    std::size_t at = 0;
    const auto take = [&](auto& value) {
      if (data.size() - at < sizeof value)
        detail::bad_file(path, "token " + std::to_string(pieces_.size()),
                         "the end of the file at byte " + std::to_string(at), "a whole record");
      std::memcpy(&value, data.data() + at, sizeof value);
      at += sizeof value;
    };
    std::int32_t longest = 0;
    take(longest);
    while (at < data.size()) {
      float score = 0;
      std::int32_t length = 0;
      take(score);
      take(length);
      const std::string which = "token " + std::to_string(pieces_.size());
      if (!std::isfinite(score))
        detail::bad_file(path, which, "score " + std::to_string(score), "a finite score");
      if (length < 0 || length > longest || static_cast<std::size_t>(length) > data.size() - at)
        detail::bad_file(path, which, "length " + std::to_string(length),
                         "0 to " + std::to_string(longest) + " and within the file");
      pieces_.emplace_back(data, at, static_cast<std::size_t>(length));
      scores_.push_back(score);
      at += static_cast<std::size_t>(length);
    }
    if (vocab() < first_byte + 256)
      detail::bad_file(path, "tokens", std::to_string(vocab()), "at least 259 (three marks and every byte)");
    for (int i = 0; i < vocab(); ++i) ids_.emplace(pieces_[static_cast<std::size_t>(i)], i);
  }

  int vocab() const override { return static_cast<int>(pieces_.size()); }
  int begin() const override { return 1; }

  /// Merges the pair with the best score first, the leftmost of equals, as run.c does, in O(n log n).
  std::vector<int> encode(std::string_view text) const override {
    std::vector<int> tokens = {begin()};
    if (text.empty()) return tokens;
    push(tokens, " ");
    for (std::size_t i = 0, end = 0; i < text.size(); i = end) {
      for (end = i + 1; end < text.size() && end - i < 4 && continues(text[end]);) ++end;
      push(tokens, text.substr(i, end - i));
    }
    return merge(tokens);
  }

  std::string piece(int previous, int token) const override {
    const std::string& text = pieces_.at(static_cast<std::size_t>(token));
    if (text.size() == 6 && text.starts_with("<0x") && text.back() == '>' && hex(text[3]) >= 0 &&
        hex(text[4]) >= 0)
      return std::string(1, static_cast<char>(hex(text[3]) * 16 + hex(text[4])));
    return previous == begin() && text.starts_with(' ') ? text.substr(1) : text;
  }

 private:
  static constexpr int first_byte = 3;

  static bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }
  static int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  }

  void push(std::vector<int>& tokens, std::string_view letter) const {
    if (const auto it = ids_.find(std::string(letter)); it != ids_.end())
      tokens.push_back(it->second);
    else
      for (const char c : letter) tokens.push_back(static_cast<unsigned char>(c) + first_byte);
  }

  struct Pair {
    float score;
    int left, right, token, left_token, right_token;
    bool operator<(const Pair& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };

  std::vector<int> merge(std::vector<int> tokens) const {
    const int n = static_cast<int>(tokens.size());
    const auto at = [](auto& list, int i) -> auto& { return list[static_cast<std::size_t>(i)]; };
    std::vector<int> next(tokens.size()), previous(tokens.size());
    std::priority_queue<Pair> queue;
    const auto offer = [&](int left, int right) {
      if (left < 0 || right >= n) return;
      const int a = at(tokens, left), b = at(tokens, right);
      if (const auto it = ids_.find(at(pieces_, a) + at(pieces_, b));
          it != ids_.end() && at(scores_, it->second) > -1e10f)
        queue.push({at(scores_, it->second), left, right, it->second, a, b});
    };
    for (int i = 0; i < n; ++i) {
      at(next, i) = i + 1;
      at(previous, i) = i - 1;
      offer(i - 1, i);
    }
    while (!queue.empty()) {
      const Pair p = queue.top();
      queue.pop();
      // A pair is stale when either side has been merged since: merged-away places hold -1.
      if (at(tokens, p.left) != p.left_token || at(next, p.left) != p.right ||
          at(tokens, p.right) != p.right_token)
        continue;
      at(tokens, p.left) = p.token;
      at(tokens, p.right) = -1;
      at(next, p.left) = at(next, p.right);
      if (at(next, p.right) < n) at(previous, at(next, p.right)) = p.left;
      offer(at(previous, p.left), p.left);
      offer(p.left, at(next, p.left));
    }
    std::erase(tokens, -1);
    return tokens;
  }

  std::vector<std::string> pieces_;
  std::vector<float> scores_;
  std::unordered_map<std::string, int> ids_;
};

/// Throws when a model was not trained with this tokenizer.
inline void check(const Tokenizer& tokenizer, const Config& config, const std::string& where) {
  if (tokenizer.vocab() != config.vocab)
    detail::bad_file(where, "tokenizer", std::to_string(tokenizer.vocab()) + " tokens",
                     std::to_string(config.vocab) + ", the vocabulary of the model");
}

/// The tokenizer of a model: bytes for a vocabulary of 256, else the file at `path`.
inline std::unique_ptr<Tokenizer> make_tokenizer(const Config& config, const std::string& path) {
  if (config.vocab == 256 && path.empty()) return std::make_unique<ByteTokenizer>();
  auto tokenizer = std::make_unique<BpeTokenizer>(path);
  check(*tokenizer, config, path);
  return tokenizer;
}

}  // namespace llama
