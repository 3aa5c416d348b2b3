// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/json.hpp>
#include <moxie/io/report.hpp>

#include <cmath>
#include <map>
#include <set>

namespace moxie::inline MOXIE_ABI::io::detail {

/// The events of a config: refuses keys that stand twice in one object, and keeps the order in which the keys
/// of the object "a" of the top object stand, which decides between patterns.
struct ConfigEvents : JsonEvents {
  std::map<std::string, std::vector<std::string>> order;

  explicit ConfigEvents(const Source& s) : JsonEvents{s} {}
  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(number_integer_t) { return true; }
  bool number_unsigned(number_unsigned_t) { return true; }
  bool number_float(number_float_t, const string_t&) { return true; }
  bool string(string_t&) { return true; }
  bool start_object(std::size_t) {
    keys_.emplace_back();
    return true;
  }
  bool end_object() {
    keys_.pop_back();
    return true;
  }
  bool start_array(std::size_t) { return true; }
  bool end_array() { return true; }
  bool key(string_t& key) {
    if (!keys_.back().insert(key).second) source.refuse(Code::duplicate_key, "twice: " + shown(key));
    if (keys_.size() == 1) top_ = key;
    if (keys_.size() == 2) order[top_].push_back(key);
    return true;
  }
  bool parse_error(std::size_t byte, const std::string& token, const nlohmann::json::exception& why) {
    if (std::string_view(why.what()).find("number overflow") != std::string_view::npos)
      source.refuse(Code::config_range, "a number that no double can hold: " + shown(token));
    return JsonEvents::parse_error(byte, token, why);
  }

 private:
  std::vector<std::set<std::string>> keys_;
  std::string top_;
};

/// The values of a config by key. Every key is asked for or excused by name; `finish` reports the others.
class ConfigReader {
 public:
  using Json = nlohmann::json;

  /// Throws what reading JSON throws, and DuplicateKey.
  ConfigReader(std::string_view text, const Source& source) : source_(source) {
    constexpr int depth = 32;
    ConfigEvents events(source);
    read_json(text, depth, events, source);
    order_ = std::move(events.order);
    json_ = Json::parse(text.begin(), text.end());
  }

  const Json& json() const { return json_; }
  template <class... What>
  [[noreturn]] void refuse(Code code, std::string_view key, const What&... what) const {
    source_.refuse(code, shown(key), " ", what...);
  }
  template <class... Wanted>
  [[noreturn]] void refuse_value(Code code, std::string_view key, const Json& got,
                                 const Wanted&... wanted) const {
    refuse(code, key, "is ", shown(got.dump(-1, ' ', true)), ", wanted ", wanted...);
  }

  /// The value, or nothing where it is absent or null. The key counts as known from now on.
  const Json* find(std::string_view key) {
    known_.insert(std::string(key));
    const auto found = json_.find(std::string(key));
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  const Json& expect(std::string_view key) {
    const Json* const value = find(key);
    if (value == nullptr) refuse(Code::missing_field, key, "is missing");
    return *value;
  }
  void known(std::initializer_list<std::string_view> keys) {
    for (const std::string_view key : keys) known_.insert(std::string(key));
  }
  /// Options that change the result and are not built: absent, null, false or empty, or UnsupportedOption.
  void unsupported(std::initializer_list<std::string_view> keys) {
    for (const std::string_view key : keys) {
      const Json* const value = find(key);
      if (value == nullptr || value->empty() || *value == false) continue;
      refuse_value(Code::unsupported_option, key, *value, "no such option: it is not built");
    }
  }

  bool boolean(std::string_view key, bool otherwise = false) {
    const Json* const value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) refuse_value(Code::config_type, key, *value, "true or false");
    return value->get<bool>();
  }
  std::string text(std::string_view key, std::string otherwise = {}) {
    const Json* const value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) refuse_value(Code::config_type, key, *value, "a text");
    return value->get<std::string>();
  }
  std::vector<std::string> texts(std::string_view key) {
    std::vector<std::string> all;
    const Json* const value = find(key);
    if (value == nullptr) return all;
    if (!value->is_array()) refuse_value(Code::config_type, key, *value, "a list of texts");
    for (const Json& element : *value) {
      if (!element.is_string()) refuse_value(Code::config_type, key, element, "texts in the list");
      all.push_back(element.get<std::string>());
    }
    return all;
  }
  Index whole(std::string_view key, const Json& value, Index least, Index most) const {
    if (!value.is_number_integer())
      refuse_value(value.is_number() ? Code::config_range : Code::config_type, key, value, "a whole number");
    const bool fits = value.is_number_unsigned()
                          ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most)
                          : value.get<std::int64_t>() <= most;
    const bool low = value.is_number_unsigned()
                         ? value.get<std::uint64_t>() < static_cast<std::uint64_t>(std::max<Index>(least, 0))
                         : value.get<std::int64_t>() < least;
    if (!fits || low) refuse_value(Code::config_range, key, value, least, " to ", most);
    return value.get<Index>();
  }
  double real(std::string_view key, const Json& value, double least, double below) const {
    if (!value.is_number()) refuse_value(Code::config_type, key, value, "a number");
    const auto got = value.get<double>();
    if (!(got >= least && got < below))
      refuse_value(Code::config_range, key, value, least, " or more, below ",
                   std::isfinite(below) ? moxie::detail::text(below) : "infinity");
    return got;
  }
  double number(std::string_view key, double least, double below, double otherwise) {
    const Json* const value = find(key);
    return value == nullptr ? otherwise : real(key, *value, least, below);
  }
  /// One whole number, or a list of them.
  std::vector<Index> wholes(std::string_view key, const Json& value, Index least, Index most) const {
    std::vector<Index> all;
    if (!value.is_array()) return {whole(key, value, least, most)};
    if (value.empty()) refuse_value(Code::config_range, key, value, "at least one number");
    for (const Json& element : value) all.push_back(whole(key, element, least, most));
    return all;
  }
  std::vector<double> numbers(std::string_view key, const Json& value, double least, double below) const {
    std::vector<double> all;
    if (!value.is_array()) return {real(key, value, least, below)};
    if (value.empty()) refuse_value(Code::config_range, key, value, "at least one number");
    for (const Json& element : value) all.push_back(real(key, element, least, below));
    return all;
  }
  /// f(pattern, its value) for an object of patterns, in the order of the text.
  template <class F>
  void patterns(std::string_view key, F&& f) {
    const Json* const value = find(key);
    if (value == nullptr) return;
    if (!value->is_object()) refuse_value(Code::config_type, key, *value, "an object");
    for (const std::string& pattern : order_[std::string(key)]) f(pattern, (*value)[pattern]);
  }

  void finish(Report& report) const {
    for (const auto& [key, value] : json_.items()) {
      if (known_.contains(key)) continue;
      if (value.is_null())  // as PEFT writes every option that is off
        report.note(key, "is null, no key that this library knows");
      else
        report.unexpect(Code::unknown_config_key, key, "is ", shown(value.dump(-1, ' ', true)),
                        ", no key that this library knows");
    }
  }

 private:
  Source source_;
  Json json_;
  std::map<std::string, std::vector<std::string>> order_;
  std::set<std::string> known_;
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
