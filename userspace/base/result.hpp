// Result<T>: how every fallible function in Holdfast answers. An Error carries what a caller may
// branch on (kind), what a machine may match on (code), what the kernel said (sys) and what a
// person needs to read (message: the object and the cause; next_step: what to do about it).
//
// Add context on the way up with `in()`, log once, at the edge that decides.
#pragma once

#include <concepts>
#include <cstring>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace holdfast {

// The error classes of the control protocol (PROTOCOL.md 1). Exit codes and replies follow from
// them.
enum class ErrorKind {
  invalid,      // the request itself is wrong; repeating it cannot help
  denied,       // the peer may not do this
  not_found,    // the named object does not exist
  conflict,     // the object is not in a state that allows this
  exhausted,    // a limit or quota is reached; nothing was changed
  unavailable,  // the thing needed is not there now; it may come back
  unsupported,  // this kernel or machine cannot enforce it
  internal,     // the kernel or the disk failed underneath us
};

struct Error {
  ErrorKind kind;
  std::string_view code;  // stable identifier with static storage, such as "ttl_out_of_range"
  int sys = 0;            // positive errno of the failed call, or 0
  std::string message;
  std::string next_step = {};

  // The same error, with the object it happened to named in front.
  Error in(std::string_view what) && {
    message = std::string(what) + ": " + message;
    return std::move(*this);
  }

  // One line for people: "message: strerror. next step"
  std::string text() const {
    std::string out = message;
    if (sys != 0) out.append(": ").append(std::strerror(sys));
    if (!next_step.empty()) out.append("; ").append(next_step);
    return out;
  }
};

template <typename T>
using Result = std::expected<T, Error>;

using Status = Result<void>;

inline std::unexpected<Error> fail(ErrorKind kind, std::string_view code, std::string message,
                                   std::string next_step = {}) {
  return std::unexpected(Error{kind, code, 0, std::move(message), std::move(next_step)});
}
// A code outlives its error: no string that is gone by then.
template <std::same_as<std::string> Text>
std::unexpected<Error> fail(ErrorKind, const Text&, std::string, std::string = {}) = delete;

// A system call failed; `sys` is a positive errno. libbpf and libmnl answers come through here too.
inline std::unexpected<Error> fail_sys(int sys, std::string_view code, std::string message,
                                       std::string next_step = {}) {
  return std::unexpected(Error{ErrorKind::internal, code, sys < 0 ? -sys : sys, std::move(message),
                               std::move(next_step)});
}

// Passes an error of another Result on.
template <typename T>
std::unexpected<Error> pass_on(Result<T>& result) {
  return std::unexpected(std::move(result.error()));
}
template <typename T>
std::unexpected<Error> pass_on(Result<T>& result, std::string_view what) {
  return std::unexpected(std::move(result.error()).in(what));
}

}  // namespace holdfast
