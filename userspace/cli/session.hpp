// Session: what every command has: how to print, how to fail, and the connection to the daemon,
// made when it is first needed. One command a process, one thread.
#pragma once

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "userspace/base/result.hpp"
#include "userspace/cli/table.hpp"
#include "userspace/token/key.hpp"
#include "userspace/wire/client.hpp"

namespace holdfast::cli {

constexpr std::string_view default_socket = "/run/holdfast/control.sock";
constexpr uint64_t json_version = 1;  // of every JSON object we print

enum class ExitCode : int {
  done = 0,
  failed = 1,       // refused, or failed
  usage = 2,        // the command line is wrong
  unsupported = 3,  // this machine cannot enforce it
  step_up = 4,      // needs a fresh authentication
};

ExitCode exit_code_of(const Error& error);

// A command line that cannot be meant. Ends as exit code 2.
std::unexpected<Error> usage(std::string message, std::string next_step = {});

// "holdfast: MESSAGE" and, on a line of its own, what to do.
std::string error_text(const Error& error, const Style& style);
// {"version":1,"error":{"code":...,"class":...,"detail":...,"next_step":...}}
std::string error_json(const Error& error);

// A reply as it came, {"version":1, ...}. A "version" of the reply's own (the daemon's) becomes
// "daemon_version".
std::string versioned_json(const cbor::Value& reply);

struct SessionOptions {
  std::string socket{default_socket};
  std::string sign_key;  // requests are signed with it, if it is named; as open_signer() takes it
  std::string grant;     // an operator grant that is shown first
  std::string bearer;    // a file with a bearer token, which is shown first
  bool json = false;
};

class Session {
 public:
  explicit Session(SessionOptions options);

  bool json() const { return options_.json; }
  const std::string& socket() const { return options_.socket; }
  const Style& style() const { return out_style_; }
  bool errors_on_terminal() const { return error_terminal_; }

  // The daemon, connected to at the first call. A batch of a million leases may take minutes.
  Result<wire::Client*> daemon(uint64_t call_timeout_ns = 60 * ns_per_s);
  Result<cbor::Value> call(std::string_view verb, const cbor::Value& args);
  // The name of the node that is meant: this one's, when none is named.
  Result<std::string> node_or(const std::string& named);
  // Proves this key to the daemon, if one is named.
  Status prove(const std::string& key);

  void print(std::string_view text);
  void print_json(const cbor::Value& reply) { print(versioned_json(reply) + "\n"); }
  // For a person who waits; never mixed into what a script reads.
  void note(std::string_view text);
  // Reports an error on stderr; the exit code that belongs to it.
  ExitCode report(const Error& error);
  // Everything printed has reached its reader, or was meant for nobody.
  Status flush();

 private:
  Status show_grant();
  Status show_bearer();

  SessionOptions options_;
  Style out_style_;
  Style error_style_;
  bool error_terminal_;
  std::optional<wire::Client> client_;
  std::shared_ptr<const token::Signer> signer_;  // opened once: a token takes a PIN once
};

}  // namespace holdfast::cli
