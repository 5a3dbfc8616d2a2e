#include "userspace/token/signers.hpp"

#include <array>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "userspace/base/unique_fd.hpp"
#include "userspace/token/pkcs11.hpp"
#include "userspace/token/ssh_key.hpp"
#include "userspace/wire/frame.hpp"

namespace holdfast::token {
namespace {

constexpr std::string_view secret_begin = "-----BEGIN OPENSSH PRIVATE KEY-----";
constexpr size_t output_bytes_max = 8192;
constexpr size_t ssh_key_bytes_max = 16384;

// What kind of key it is, is seen by its beginning. ssh-keygen, which reads OpenSSH's secret keys,
// looks at their mode and owner by itself.
Result<std::string> read_ssh_key(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  std::string content(ssh_key_bytes_max, '\0');
  const ssize_t got = fd ? ::read(fd.get(), content.data(), content.size()) : -1;
  if (got < 0)
    return fail(ErrorKind::not_found, "key_missing", "there is no key in " + path,
                "ssh-keygen -t ed25519 -f " + path);
  content.resize(static_cast<size_t>(got));
  return content;
}

struct Pipe {
  UniqueFd read, write;

  static Result<Pipe> open() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail_sys(errno, "pipe", "making a pipe");
    return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
  }
};

Result<std::string> read_all(int fd) {
  std::string all;
  std::array<char, 1024> buffer{};
  for (;;) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_sys(errno, "ssh_keygen", "reading ssh-keygen's signature");
    if (got == 0 || all.size() > output_bytes_max) return all;
    all.append(buffer.data(), static_cast<size_t>(got));
  }
}

class SshSigner : public Signer {
 public:
  SshSigner(std::string path, SignerKey key) : path_(std::move(path)), key_(std::move(key)) {}

  const PublicKey& public_key() const override { return key_.key; }
  std::string_view application() const override { return key_.application; }
  Algorithm algorithm() const override { return Algorithm::ssh; }

  Result<std::vector<uint8_t>> sign(std::span<const uint8_t> message) const override {
    // A file and no pipe: there is nobody to wait for when ssh-keygen ends early.
    Result<UniqueFd> in = wire::sealed_memfd({message});
    if (!in) return pass_on(in);
    ::lseek(in->get(), 0, SEEK_SET);
    Result<Pipe> out = Pipe::open();
    if (!out) return pass_on(out);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in->get(), STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, out->write.get(), STDOUT_FILENO);
    std::array<std::string, 8> words{
        "ssh-keygen", "-q", "-Y", "sign", "-n", std::string(ssh_namespace), "-f", path_};
    std::array<char*, words.size() + 1> argv{};
    for (size_t i = 0; i < words.size(); ++i) argv[i] = words[i].data();
    pid_t child = 0;
    const int error = ::posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (error != 0)
      return fail_sys(error, "ssh_keygen", "running ssh-keygen", "install openssh-client");
    out->write.reset();
    const Result<std::string> armoured = read_all(out->read.get());
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
      return fail(ErrorKind::denied, "ssh_keygen", "ssh-keygen did not sign with " + path_,
                  "it says why above; try: ssh-keygen -Y sign -n holdfast -f " + path_);
    if (!armoured) return std::unexpected(armoured.error());
    return parse_ssh_signature(*armoured);
  }

 private:
  std::string path_;
  SignerKey key_;
};

bool is_ssh_key(std::string_view content) {
  return content.starts_with(secret_begin) || content.starts_with("ssh-") ||
         content.starts_with("sk-");
}

Result<std::unique_ptr<Signer>> open_ssh_signer(const std::string& path) {
  const std::string public_path = path.ends_with(".pub") ? path : path + ".pub";
  const Result<std::string> line = read_ssh_key(public_path);
  if (!line) return std::unexpected(line.error());
  Result<SignerKey> key = parse_ssh_public_key(*line);
  if (!key) return pass_on(key, public_path);
  return std::make_unique<SshSigner>(path, std::move(*key));
}

}  // namespace

Result<std::unique_ptr<Signer>> open_signer(const std::string& name) {
  if (is_pkcs11_uri(name)) return open_pkcs11_signer(name);
  const Result<std::string> content = read_ssh_key(name);
  if (content && is_ssh_key(*content)) return open_ssh_signer(name);
  Result<SecretKey> key = SecretKey::read(name);
  if (!key) return pass_on(key);
  return std::make_unique<SecretKey>(std::move(*key));
}

}  // namespace holdfast::token
