// A network namespace of one's own for a test. The thread that makes it stays in it, so the test's
// sockets and the commands it runs are in there too; the namespace goes when the thread does.
#pragma once

#include <array>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

namespace holdfast::test {

// Runs `body` in a fresh network namespace on a thread of its own.
template <typename Body>
void in_fresh_namespace(Body body) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to make a network namespace";
  std::thread thread([&] {
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0) << std::strerror(errno);
    body();
  });
  thread.join();
}

struct Output {
  int status = -1;
  std::string text;
};

// A shell command in the calling thread's namespace, with both its outputs.
inline Output run(const std::string& command) {
  Output out;
  std::FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return out;
  std::array<char, 4096> buffer{};
  while (size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    out.text.append(buffer.data(), got);
  }
  out.status = ::pclose(pipe);
  return out;
}

}  // namespace holdfast::test
