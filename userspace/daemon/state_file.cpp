#include "userspace/daemon/state_file.hpp"

#include <array>
#include <cerrno>
#include <cstdio>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "userspace/base/unique_fd.hpp"
#include "userspace/base/write_all.hpp"

namespace holdfast {

Result<std::string> read_state_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return fail_sys(errno, "state_read", "reading " + path);
  std::string content;
  std::array<char, 65536> buffer{};
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
    if (got == 0) return content;
    if (got < 0) return fail_sys(errno, "state_read", "reading " + path);
    content.append(buffer.data(), static_cast<size_t>(got));
  }
}

Status write_state_file(const std::string& directory, std::string_view name,
                        std::string_view content, unsigned mode) {
  const std::string path = directory + "/" + std::string(name);
  const std::string beside = path + ".new";
  ::unlink(beside.c_str());  // of a write that was cut short, perhaps with another mode
  const UniqueFd fd(
      ::open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!fd)
    return fail_sys(errno, "state_write", "creating " + beside,
                    "the state directory must exist and be writable");
  if (!write_all(fd.get(), {reinterpret_cast<const uint8_t*>(content.data()), content.size()}))
    return fail_sys(errno, "state_write", "writing " + beside);
  if (::fsync(fd.get()) != 0) return fail_sys(errno, "state_write", "syncing " + beside);
  if (::rename(beside.c_str(), path.c_str()) != 0)
    return fail_sys(errno, "state_write", "renaming " + beside);
  const UniqueFd dir(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir || ::fsync(dir.get()) != 0)
    return fail_sys(errno, "state_write", "syncing " + directory);
  return {};
}

}  // namespace holdfast
