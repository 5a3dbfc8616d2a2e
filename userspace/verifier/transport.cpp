#include "userspace/verifier/transport.hpp"

#include <cerrno>

#include <sys/mman.h>

namespace holdfast::verifier {

void Unmap::operator()(void* memory) const {
  ::munmap(memory, bytes);
}

Result<Mapped<uint8_t>> map_memory(size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return fail_sys(errno, "memory", "mapping receive buffers");
  ::madvise(memory, bytes, MADV_NOHUGEPAGE);  // a kernel without them has nothing to refrain from
  return Mapped<uint8_t>(static_cast<uint8_t*>(memory), Unmap{bytes});
}

}  // namespace holdfast::verifier
