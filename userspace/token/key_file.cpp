#include "userspace/token/key_file.hpp"

#include <cerrno>

#include <fcntl.h>
#include <fmt/format.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include "userspace/base/unique_fd.hpp"

namespace holdfast::token {
namespace {

constexpr size_t key_file_max = 4096;

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

std::unexpected<Error> not_regular(const std::string& path, std::string_view what) {
  return fail(ErrorKind::invalid, "key_not_regular",
              fmt::format("{} is {}, and no regular file", path, what), "name the file itself");
}

Status check(const std::string& path, const struct stat& file, KeyFileMode mode) {
  if (!S_ISREG(file.st_mode)) return not_regular(path, kind_of(file.st_mode));
  if (file.st_uid != ::geteuid())
    return fail(ErrorKind::denied, "key_owner",
                fmt::format("{} belongs to uid {}, and this runs as uid {}", path, file.st_uid,
                            ::geteuid()),
                fmt::format("chown {} {}, or run this as its owner", ::geteuid(), path));
  const unsigned bits = file.st_mode & 07777;
  if (mode == KeyFileMode::read_only ? bits != 0400 : (bits & 077) != 0)
    return fail(ErrorKind::denied, "key_exposed",
                fmt::format("{} has mode {:04o}, and must have 0400{}", path, bits,
                            mode == KeyFileMode::read_only ? "" : " or 0600"),
                "see who may have read or written it, then: chmod 0400 " + path);
  return {};
}

}  // namespace

Secret::~Secret() {
  sodium_memzero(bytes_.data(), bytes_.size());
}

Result<Secret> read_key_file(const std::string& path, KeyFileMode mode) {
  // O_NONBLOCK: nobody is waited for who would open the other end of a pipe.
  const UniqueFd fd(
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
  if (!fd && errno == ENOENT)
    return fail(ErrorKind::not_found, "key_missing", "there is no file " + path,
                "name one that is there");
  if (!fd && errno == ELOOP) return not_regular(path, "a symbolic link");
  if (!fd && errno == ENXIO) return not_regular(path, "a socket");
  if (!fd) return fail_sys(errno, "key_read", "opening " + path, "run this as its owner");
  struct stat file{};
  if (::fstat(fd.get(), &file) != 0) return fail_sys(errno, "key_read", path);
  if (Status ok = check(path, file, mode); !ok) return pass_on(ok);
  Secret secret(key_file_max + 1);
  size_t size = 0;
  while (size <= key_file_max) {
    const ssize_t got = ::read(fd.get(), secret.data() + size, key_file_max + 1 - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_sys(errno, "key_read", "reading " + path);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > key_file_max)
    return fail(ErrorKind::invalid, "key_too_large",
                fmt::format("{} has more than {} bytes", path, key_file_max),
                "name a file that holds a key and nothing else");
  secret.use(size);
  return secret;
}

}  // namespace holdfast::token
