#include "userspace/cli/session.hpp"

#include <cerrno>
#include <cstdlib>
#include <memory>

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "userspace/cli/bulk.hpp"
#include "userspace/token/holder.hpp"
#include "userspace/token/requests.hpp"
#include "userspace/token/signers.hpp"

namespace holdfast::cli {
namespace {

constexpr size_t grant_bytes_max = 32768;
constexpr size_t bearer_bytes_max = 256;

// What is no secret to the machine's other users any more is no credential.
Status check_private(const std::string& path) {
  struct stat file{};
  if (path == "-" || ::stat(path.c_str(), &file) != 0) return {};  // reading it says what is wrong
  if ((file.st_mode & 007) == 0) return {};
  return fail(ErrorKind::denied, "bearer_exposed",
              fmt::format("everybody may read the bearer token in {} (mode {:o})", path,
                          static_cast<unsigned>(file.st_mode & 07777)),
              "chmod 0400 " + path);
}

bool wants_colours(int fd) {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return ::isatty(fd) == 1 && (no_color == nullptr || *no_color == '\0') &&
         (term == nullptr || std::string_view(term) != "dumb");
}

}  // namespace

ExitCode exit_code_of(const Error& error) {
  if (error.code == "usage") return ExitCode::usage;
  if (error.code == "step_up_required") return ExitCode::step_up;
  // Two programs that do not understand each other say nothing about what the machine can do.
  const bool strangers = error.code == "not_holdfast" || error.code == "unknown_version" ||
                         error.code == "unknown_verb";
  if (error.kind == ErrorKind::unsupported && !strangers) return ExitCode::unsupported;
  return ExitCode::failed;
}

std::unexpected<Error> usage(std::string message, std::string next_step) {
  return fail(ErrorKind::invalid, "usage", std::move(message), std::move(next_step));
}

std::string error_text(const Error& error, const Style& style) {
  std::string detail = error.message;
  if (error.sys != 0) detail.append(": ").append(std::strerror(error.sys));
  std::string out = style.paint(Colour::red, "holdfast:") + " ";
  // A policy's errors are one a line: each keeps its line.
  for (size_t at = 0; at <= detail.size();) {
    const size_t end = std::min(detail.find('\n', at), detail.size());
    if (at != 0) out += "  ";
    out += printable(std::string_view(detail).substr(at, end - at)) + "\n";
    at = end + 1;
  }
  if (!error.next_step.empty()) out += "  " + printable(error.next_step) + "\n";
  return out;
}

std::string error_json(const Error& error) {
  std::string detail = error.message;
  if (error.sys != 0) detail.append(": ").append(std::strerror(error.sys));
  const cbor::Value body = cbor::Value::map({{"code", std::string(error.code)},
                                             {"class", wire::class_name(error)},
                                             {"detail", detail},
                                             {"next_step", error.next_step}});
  return fmt::format("{{\"version\":{},\"error\":{}}}\n", json_version, cbor::to_json(body));
}

std::string versioned_json(const cbor::Value& reply) {
  cbor::Value out = cbor::Value::map();
  if (const cbor::Value::Map* entries = reply.as_map()) {
    for (const cbor::Value::Entry& entry : *entries)
      out.set(entry.key == "version" ? "daemon_version" : std::string_view(entry.key), entry.value);
  }
  const std::string json = cbor::to_json(out);  // "{...}"
  return fmt::format("{{\"version\":{}{}{}", json_version, json.size() > 2 ? "," : "",
                     std::string_view(json).substr(1));
}

Session::Session(SessionOptions options)
    : options_(std::move(options)),
      out_style_{.colours = !options_.json && wants_colours(STDOUT_FILENO)},
      error_style_{.colours = wants_colours(STDERR_FILENO)},
      error_terminal_(::isatty(STDERR_FILENO) == 1) {}

Result<wire::Client*> Session::daemon(uint64_t call_timeout_ns) {
  if (!client_ || !client_->is_connected()) {
    wire::ClientOptions options;
    options.call_timeout_ns = call_timeout_ns;
    Result<wire::Client> client = wire::Client::connect(options_.socket, options);
    if (!client) return pass_on(client);
    client_ = std::move(*client);
    if (Status ok = show_bearer(); !ok) return pass_on(ok);
    if (!options_.sign_key.empty()) {
      if (!signer_) {
        Result<std::unique_ptr<token::Signer>> signer = token::open_signer(options_.sign_key);
        if (!signer) return pass_on(signer);
        signer_ = std::move(*signer);
      }
      if (Status ok = show_grant(); !ok) return pass_on(ok);
      token::sign_requests(*client_, signer_);
    }
  }
  return &*client_;
}

Status Session::show_grant() {
  if (options_.grant.empty()) return {};
  const Result<std::string> grant = read_file(options_.grant, grant_bytes_max);
  if (!grant) return std::unexpected(grant.error());
  const Result<cbor::Value> reply = client_->call(
      "operator.present",
      cbor::Value::map({{"grant", cbor::Value::Bytes(grant->begin(), grant->end())}}));
  if (!reply) return std::unexpected(reply.error());
  return {};
}

Status Session::show_bearer() {
  const std::string& path = options_.bearer;
  if (path.empty()) return {};
  if (!options_.sign_key.empty())
    return usage("--bearer-file and --sign-key: a request is asked for in one name",
                 "leave one of them out, or unset HOLDFAST_BEARER_FILE");
  if (Status ok = check_private(path); !ok) return ok;
  Result<std::string> token = read_file(path, bearer_bytes_max);
  if (!token) return pass_on(token);
  if (token->ends_with('\n')) token->pop_back();
  const Result<cbor::Value> reply =
      client_->call("session.bearer", cbor::Value::map({{"token", *token}}));
  if (!reply) return std::unexpected(reply.error());
  return {};
}

Result<cbor::Value> Session::call(std::string_view verb, const cbor::Value& args) {
  Result<wire::Client*> client = daemon();
  if (!client) return pass_on(client);
  return (*client)->call(verb, args);
}

Result<std::string> Session::node_or(const std::string& named) {
  if (!named.empty()) return named;
  Result<wire::Client*> node = daemon();
  if (!node)
    return pass_on(
        node, fmt::format("asking {} for the node's name, since there is no --node", socket()));
  const Result<std::string_view> name = (*node)->hello().get_text("node");
  if (!name) return std::unexpected(name.error());
  return std::string(*name);
}

Status Session::prove(const std::string& key) {
  if (key.empty()) return {};
  const Result<std::unique_ptr<token::Signer>> signer = token::open_signer(key);
  if (!signer) return std::unexpected(signer.error());
  Result<wire::Client*> node = daemon();
  if (!node) return pass_on(node);
  return token::prove_key(**node, **signer);
}

void Session::print(std::string_view text) {
  // What fails here is found by flush(): stdio remembers.
  (void)std::fwrite(text.data(), 1, text.size(), stdout);
}

void Session::note(std::string_view text) {
  if (!error_terminal_ || options_.json) return;
  (void)std::fwrite(text.data(), 1, text.size(), stderr);
}

ExitCode Session::report(const Error& error) {
  (void)std::fflush(stdout);  // so that both streams on one terminal read in order
  const std::string text = options_.json ? error_json(error) : error_text(error, error_style_);
  (void)std::fwrite(text.data(), 1, text.size(), stderr);
  return exit_code_of(error);
}

Status Session::flush() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    return fail_sys(errno, "output", "writing the output", "see whether its disk is full");
  return {};
}

}  // namespace holdfast::cli
