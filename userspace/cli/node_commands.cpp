// node identity: who this node is, and with what it signs.
#include <cerrno>
#include <span>

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "userspace/base/unique_fd.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

// What is signed and no secret: to a file, which is replaced.
Status write_file(const std::string& path, std::span<const uint8_t> bytes) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd) return fail_sys(errno, "file_write", "opening " + path);
  while (!bytes.empty()) {
    const ssize_t done = ::write(fd.get(), bytes.data(), bytes.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return fail_sys(errno, "file_write", "writing " + path);
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
  return {};
}

std::string render_identity(const Value& reply, const Style& style) {
  Facts facts;
  const bool on_token = text_of(reply, "kept") == "pkcs11";
  facts.add("node", printable(text_of(reply, "node")));
  facts.add("epoch", std::to_string(number_of(reply, "epoch")));
  facts.add("key", printable(text_of(reply, "key")));
  facts.add("kept", on_token ? "on a PKCS#11 token" : "in a file of the state directory");
  facts.add("signs with", on_token ? printable(text_of(reply, "epoch_key")) : "that key");
  facts.add("certificate", part_of(reply, "certificate").is_null()
                               ? style.paint(Colour::red, "none: its own key could not sign it")
                               : "there: --out FILE keeps it");
  return facts.render(style);
}

}  // namespace

Outcome run_node_identity(Session& session, const std::string& out) {
  const Result<Value> reply = session.call("node.identity", Value::map());
  if (!reply) return std::unexpected(reply.error());
  if (!out.empty()) {
    const Value::Bytes* certificate = part_of(*reply, "certificate").as_bytes();
    if (certificate == nullptr)
      return fail(ErrorKind::unavailable, "no_certificate",
                  "the node's own key could not sign for its epoch key when the epoch began",
                  "see the daemon's log; once the key is back: systemctl restart holdfastd");
    if (Status ok = write_file(out, *certificate); !ok) return pass_on(ok);
  }
  if (session.json())
    session.print_json(*reply);
  else
    session.print(render_identity(*reply, session.style()));
  return ExitCode::done;
}

}  // namespace holdfast::cli
