// SPDX-License-Identifier: MIT
#pragma once

#include <moxie/io/pickle_values.hpp>

/// The part of Python's pickle (protocol 2; docs.python.org/3/library/pickletools.html) that torch.save needs
/// for a dictionary of tensors. It is a machine of a stack and a memo, but this one runs nothing: the names
/// that it knows stand for what we make ourselves, and everything else is refused where it is read.
namespace moxie::inline MOXIE_ABI::io::detail {

/// Reads one pickle. `Tensors` makes, or refuses, what it asks for:
///   std::uint64_t storage(reader, dtype, span<const PickleValue> id)   id: what stands in the persistent id
///   std::uint64_t tensor(reader, span<const PickleValue> arguments)
template <class Tensors>
class PickleReader {
 public:
  using Value = PickleValue;
  using Kind = PickleValue::Kind;

  PickleReader(std::string_view pickle, const Path& path, Tensors& tensors)
      : pickle_(pickle), path_(path), tensors_(tensors), store_(pickle) {}

  /// The value of the whole pickle. Throws BadPickle, UnsupportedPickle, TooLarge, TrailingData, and what
  /// `Tensors` throws.
  Value read() {
    if (take(1) != "\x80" || take(1) != "\x02")
      refuse(Code::unsupported_pickle, "no pickle of protocol 2, which torch.save writes by default");
    for (char op = 0; op != '.';) {
      op_at_ = at_;
      op = take(1)[0];
      step(op);
    }
    if (stack_.size() != 1 || !marks_.empty())
      refuse(Code::bad_pickle, stack_.size(), " values at its end, wanted one");
    if (at_ != pickle_.size()) refuse(Code::trailing_data, "the pickle ends here, but data.pkl goes on");
    return stack_.back();
  }

  const PickleStore& values() const { return store_; }
  template <class... What>
  [[noreturn]] void refuse(Code code, const What&... what) const {
    detail::refuse(code, path_, "data.pkl byte ", op_at_, ": ", what...);
  }

 private:
  static constexpr std::size_t most_stacked = 1 << 16, most_marks = 64;

  void step(char op) {
    switch (op) {
      case '.':
        return;
      case '(':  // MARK
        if (marks_.size() == most_marks) refuse(Code::too_large, "nested deeper than 64 levels");
        return marks_.push_back(stack_.size());
      case 'K':
        return push_integer(number<std::uint8_t>());
      case 'M':
        return push_integer(number<std::uint16_t>());
      case 'J':
        return push_integer(number<std::int32_t>());
      case '\x8a':
        return long_integer();
      case '\x88':
      case '\x89':
        return push({.kind = Kind::boolean, .at = op == '\x88'});
      case 'X': {  // BINUNICODE
        const auto size = number<std::uint32_t>();
        const std::size_t begin = at_;
        take(size);
        return push({.kind = Kind::text, .size = size, .at = begin});
      }
      case 'c':
        return global();
      case ')':
        return tuple(0);
      case '\x85':
      case '\x86':
      case '\x87':
        return tuple(static_cast<std::size_t>(static_cast<unsigned char>(op)) - 0x84);
      case 't':
        return tuple(above_mark());
      case '}':
        return push_dict(false);
      case 's':
        return set_items(2);
      case 'u':
        return set_items(above_mark());
      case 'q':
        return memoize(number<std::uint8_t>());
      case 'r':
        return memoize(number<std::uint32_t>());
      case 'h':
        return recall(number<std::uint8_t>());
      case 'j':
        return recall(number<std::uint32_t>());
      case 'Q':
        return persistent();
      case 'R':
        return reduce();
      case 'b':
        return build();
      default:
        refuse(Code::unsupported_pickle, "opcode ", shown({&op, 1}),
               ", which a dictionary of tensors does not need");
    }
  }

  std::string_view take(std::size_t n) {
    if (n > pickle_.size() - at_) refuse(Code::bad_pickle, "the pickle is cut off, or a length is too large");
    at_ += n;
    return pickle_.substr(at_ - n, n);
  }
  template <class T>
  T number() {
    return load_little<T>(take(sizeof(T)).data());
  }

  void keep(std::uint64_t values) {
    if (!store_.keep(values)) refuse(Code::too_large, "more than ", PickleStore::most_kept, " values");
  }
  void push(Value v) {
    if (stack_.size() == most_stacked) refuse(Code::too_large, "more than ", most_stacked, " values at once");
    stack_.push_back(v);
  }
  void push_integer(std::int64_t n) { push({.kind = Kind::integer, .at = std::bit_cast<std::uint64_t>(n)}); }
  /// A value below a mark belongs to somebody else.
  void expect_stacked(std::size_t n) const {
    if (stack_.size() - (marks_.empty() ? 0 : marks_.back()) < n)
      refuse(Code::bad_pickle, "an operation on values that are not there");
  }
  Value pop() {
    expect_stacked(1);
    const Value v = stack_.back();
    stack_.pop_back();
    return v;
  }
  const Value& top() const {
    expect_stacked(1);
    return stack_.back();
  }
  Value pop(Kind kind) {
    const Value v = pop();
    if (v.kind != kind) refuse(Code::bad_pickle, name(v.kind), ", wanted ", name(kind));
    return v;
  }
  std::size_t above_mark() {
    if (marks_.empty()) refuse(Code::bad_pickle, "an operation on a mark that is not there");
    const std::size_t n = stack_.size() - marks_.back();
    marks_.pop_back();
    return n;
  }
  void push_dict(bool ordered) {
    keep(2);
    push(store_.new_dict(ordered));
  }

  void long_integer() {
    const std::size_t size = number<std::uint8_t>();
    const std::string_view digits = take(size);
    if (size > 8) refuse(Code::integer_range, "an integer of more than 64 bits");
    std::uint64_t n = !digits.empty() && digits.back() < 0 ? ~std::uint64_t{0} : 0;
    for (std::size_t i = size; i-- > 0;) n = n << 8 | static_cast<unsigned char>(digits[i]);
    push_integer(std::bit_cast<std::int64_t>(n));
  }
  void global() {
    const auto line = [this] {
      constexpr std::size_t most = 256;
      const std::size_t length = pickle_.substr(at_, most).find('\n');
      if (length == std::string_view::npos)
        refuse(Code::bad_pickle, "a name that is cut off, or above 256 bytes");
      return take(length + 1).substr(0, length);
    };
    const std::string_view module = line(), attribute = line();
    for (std::size_t i = 0; i < std::size(pickle_globals); ++i)
      if (pickle_globals[i].module == module && pickle_globals[i].name == attribute)
        return push({.kind = Kind::global, .at = i});
    refuse(Code::unsupported_pickle, "it names ", shown(join(module, ".", attribute)),
           ", wanted OrderedDict, plain tensors, parameters and their storages alone");
  }
  void tuple(std::size_t n) {
    expect_stacked(n);
    keep(n);
    const Value all = store_.new_tuple(std::span<const Value>(stack_).last(n));
    stack_.resize(stack_.size() - n);
    push(all);
  }
  void set_items(std::size_t n) {
    expect_stacked(n);
    if (n % 2 != 0) refuse(Code::bad_pickle, "a key without a value");
    const std::size_t begin = stack_.size() - n;
    // The dictionary itself lies below the entries, and not below a mark.
    if (begin <= (marks_.empty() ? 0 : marks_.back()) || stack_[begin - 1].kind != Kind::dict)
      refuse(Code::bad_pickle, "entries, but no dictionary for them");
    keep(n / 2 * 3);
    for (std::size_t i = begin; i < stack_.size(); i += 2)
      store_.add(stack_[begin - 1], stack_[i], stack_[i + 1]);
    stack_.resize(begin);
  }
  /// Python numbers the memo in the order of writing.
  void memoize(std::uint64_t index) {
    if (index != memo_.size())
      refuse(Code::bad_pickle, "memo ", index, ", wanted ", memo_.size(), ", the next one");
    keep(1);
    memo_.push_back(top());
  }
  void recall(std::uint64_t index) {
    if (index >= memo_.size()) refuse(Code::bad_pickle, "memo ", index, " of ", memo_.size());
    push(memo_[static_cast<std::size_t>(index)]);
  }
  void persistent() {
    const Value id = pop(Kind::tuple);
    push({.kind = Kind::storage, .at = tensors_.storage(*this, store_.items(id))});
  }
  /// A call: of what we know, with the arguments that torch gives it.
  void reduce() {
    const Value arguments = pop(Kind::tuple), function = pop(Kind::global);
    const std::span<const Value> a = store_.items(arguments);
    switch (pickle_globals[function.at].what) {
      case PickleName::ordered_dict:
        if (!a.empty()) refuse(Code::unsupported_pickle, "OrderedDict called with arguments, wanted none");
        return push_dict(true);
      case PickleName::tensor:
        return push({.kind = Kind::tensor, .at = tensors_.tensor(*this, a)});
      case PickleName::parameter:
        if (a.size() != 3 || a[0].kind != Kind::tensor || a[1].kind != Kind::boolean ||
            !store_.is_empty_ordered_dict(a[2]))
          refuse(Code::bad_tensor_entry, "a parameter of other than a tensor, a truth value and no hooks");
        return push(a[0]);
      case PickleName::storage:
        refuse(Code::unsupported_pickle, "a storage that is called, wanted one by its persistent id");
    }
  }
  /// The attribute that a state_dict carries, the versions of its modules; it says nothing of the weights.
  void build() {
    const Value state = pop(Kind::dict);
    const Value& object = top();
    bool allowed = store_.is_ordered_dict(object) && store_.size(state) == 1;
    if (allowed)
      store_.for_entries(state, [&](const Value& key, const Value& value) {
        allowed = key.kind == Kind::text && store_.text(key) == "_metadata" && value.kind == Kind::dict;
      });
    if (!allowed)
      refuse(Code::unsupported_pickle, "attributes of an object, wanted _metadata of an OrderedDict alone");
  }

  std::string_view pickle_;
  const Path& path_;
  Tensors& tensors_;
  std::size_t at_ = 0, op_at_ = 0;
  PickleStore store_;
  std::vector<Value> stack_, memo_;
  std::vector<std::size_t> marks_;
};

}  // namespace moxie::inline MOXIE_ABI::io::detail
