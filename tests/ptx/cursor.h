// Text of PTX with a place in it.
#pragma once

#include <algorithm>
#include <cctype>
#include <charconv>
#include <string>
#include <string_view>

#include "program.h"

namespace ptx {

inline bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

// Text with a place in it. Comments are passed over as blanks are.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}

  bool at_end() {
    skip();
    return at_ == text_.size();
  }
  char peek() {
    skip();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(std::string("expected '") + c + "'");
  }
  std::string_view name() {
    skip();
    const size_t begin = at_;
    while (at_ < text_.size() && is_name(text_[at_])) ++at_;
    return text_.substr(begin, at_ - begin);
  }
  bool take(std::string_view text) {
    skip();
    if (text_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }
  // Up to one of `ends`, which is passed over; quoted text may hold it.
  std::string_view until(std::string_view ends) {
    const size_t begin = at_;
    bool quoted = false;
    while (at_ < text_.size() && (quoted || ends.find(text_[at_]) == ends.npos)) quoted ^= text_[at_++] == '"';
    const std::string_view found = text_.substr(begin, at_ - begin);
    if (at_ < text_.size()) ++at_;
    return found;
  }
  int64_t number() {
    const bool negative = take('-');
    const std::string_view digits = name();
    const bool hex = digits.substr(0, 2) == "0x";
    uint64_t value = 0;
    const char* end = digits.data() + digits.size() - (digits.ends_with('U') ? 1 : 0);
    const auto result = std::from_chars(digits.data() + (hex ? 2 : 0), end, value, hex ? 16 : 10);
    if (result.ec != std::errc() || result.ptr != end) fail("not a number: " + std::string(digits));
    return negative ? -int64_t(value) : int64_t(value);
  }
  [[noreturn]] void fail(const std::string& what) const {
    const auto line = 1 + std::count(text_.begin(), text_.begin() + long(at_), '\n');
    throw Fault("ptx: line " + std::to_string(line) + ": " + what);
  }

 private:
  void skip() {
    while (at_ < text_.size()) {
      if (std::isspace(static_cast<unsigned char>(text_[at_]))) {
        ++at_;
      } else if (text_.substr(at_, 2) == "//") {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else {
        break;
      }
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

inline int bytes_of_type(std::string_view type) {  // "b32", "f64", "pred"
  if (type == "pred") return 0;
  int bits = 0;
  std::from_chars(type.data() + type.find_first_of("0123456789"), type.data() + type.size(), bits);
  return bits / 8;
}

// Variables of a module or a kernel: where each lies in its space.
using Variables = std::map<std::string, int64_t, std::less<>>;

// The kernel that begins behind its name.
void parse_kernel(Cursor& in, Module& module, Kernel& kernel, const Variables& variables, int shared_bytes);

}  // namespace ptx
