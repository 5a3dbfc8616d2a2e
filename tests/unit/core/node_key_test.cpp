// H9: the node's key file is 32 raw bytes and a trailer, mode 0400, a regular file; whatever is not
// so keeps the daemon from starting. (Owner: tests/node/test_keys.py, as root.)
#include "userspace/daemon/node_key.hpp"

#include <array>
#include <string>

#include <sys/stat.h>

#include "tests/unit/core/directory.hpp"
#include "userspace/daemon/identity.hpp"
#include "userspace/token/token.hpp"

namespace holdfast {
namespace {

const Identity::Moment now{1'800'000'000'000, "boot-1"};

// `openssl genpkey -algorithm ed25519` with the seed 3, 3, ...
constexpr std::string_view in_pem =
    "-----BEGIN PRIVATE KEY-----\n"
    "MC4CAQAwBQYDK2VwBCIEIAMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMD\n"
    "-----END PRIVATE KEY-----\n";

token::SecretKey key_of(uint8_t number) {
  std::array<uint8_t, 32> seed{};
  seed.fill(number);
  return token::SecretKey::from_seed(seed);
}

void put(const Directory& state, std::string_view content, mode_t mode = 0400) {
  const std::string path = state.path() + "/node.key";
  std::filesystem::remove_all(path);
  state.write("node.key", std::string(content));
  EXPECT_EQ(::chmod(path.c_str(), mode), 0);
}

std::string_view answer(const Directory& state) {
  const Result<NodeKey> key = read_node_key(state.path());
  if (key) return "good";
  EXPECT_NE(key.error().message.find(state.path() + "/node.key"), std::string::npos);
  EXPECT_TRUE(!key.error().next_step.empty() || key.error().code == "key_missing");
  return key.error().code;
}

TEST(NodeKey, IsReadAsItWasWritten) {
  const Directory state;
  EXPECT_EQ(answer(state), "key_missing");
  ASSERT_TRUE(write_node_key(state.path(), key_of(3)));
  const Result<NodeKey> key = read_node_key(state.path());
  ASSERT_TRUE(key) << key.error().text();
  EXPECT_EQ(key->key.public_key(), key_of(3).public_key());
  EXPECT_FALSE(key->in_pem);
  const std::string content = state.read("node.key");
  EXPECT_EQ(content.substr(0, 32), std::string(32, '\3'));
  EXPECT_EQ(content.substr(32, 8), "HFNODE1\n");
  EXPECT_EQ(content.size(), 64U);
}

TEST(NodeKey, EveryBitAndEveryLength) {
  const Directory state;
  ASSERT_TRUE(write_node_key(state.path(), key_of(3)));
  const std::string good = state.read("node.key");
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    put(state, bad);
    EXPECT_EQ(answer(state), "key_damaged") << bit;
  }
  for (size_t size = 0; size < good.size(); ++size) {
    put(state, good.substr(0, size));
    EXPECT_EQ(answer(state), "key_length") << size;
  }
  put(state, good + "\n");
  EXPECT_EQ(answer(state), "key_length");
  put(state, good + std::string(8192, 'x'));
  EXPECT_EQ(answer(state), "key_too_large");
  put(state, good);
  EXPECT_EQ(answer(state), "good");
}

TEST(NodeKey, WhatFileItIs) {
  const Directory state;
  const std::string path = state.path() + "/node.key";
  ASSERT_TRUE(write_node_key(state.path(), key_of(3)));
  const std::string good = state.read("node.key");
  for (const mode_t mode : {0600, 0500, 0000, 0440, 0404, 0410, 0401, 0420, 0402, 02400, 04400}) {
    put(state, good, mode);
    const std::string_view said = answer(state);
    EXPECT_TRUE(said == "key_exposed" || (mode == 0 && said == "key_read")) << std::oct << mode;
  }
  std::filesystem::remove(path);
  state.write("kept", good);
  ASSERT_EQ(::chmod((state.path() + "/kept").c_str(), 0400), 0);
  std::filesystem::create_symlink("kept", path);
  EXPECT_EQ(answer(state), "key_not_regular");
  // One that leads nowhere is no key that is not there yet.
  std::filesystem::remove(path);
  std::filesystem::create_symlink("none", path);
  EXPECT_EQ(answer(state), "key_not_regular");
  EXPECT_FALSE(Identity::open(state.path(), now));
  EXPECT_TRUE(std::filesystem::is_symlink(path));
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);
  EXPECT_EQ(answer(state), "key_not_regular");
  std::filesystem::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0400), 0);  // nobody writes to it, and nobody is waited for
  EXPECT_EQ(answer(state), "key_not_regular");
  // A second name gives nobody anything that mode and owner deny.
  std::filesystem::remove(path);
  std::filesystem::create_hard_link(state.path() + "/kept", path);
  EXPECT_EQ(answer(state), "good");
}

TEST(NodeKey, PemIsWrittenAnewOnce) {
  const Directory state;
  put(state, in_pem);
  state.write("node.key.new", "of a write that was cut short");
  ASSERT_EQ(::chmod((state.path() + "/node.key.new").c_str(), 0400), 0);
  const std::string name = token::node_name(key_of(3).public_key());
  for (const bool first : {true, false}) {
    EXPECT_EQ(read_node_key(state.path())->in_pem, first);
    const Result<Identity> identity = Identity::open(state.path(), now);
    ASSERT_TRUE(identity) << identity.error().text();
    EXPECT_EQ(identity->name(), name);
  }
  EXPECT_EQ(state.read("node.key").size(), 64U);
  EXPECT_FALSE(std::filesystem::exists(state.path() + "/node.key.new"));
  // Not before it is known to be this node's.
  const Directory other;
  ASSERT_TRUE(Identity::open(other.path(), now));
  put(other, in_pem);
  EXPECT_EQ(Identity::open(other.path(), now).error().code, "node_key_changed");
  EXPECT_EQ(other.read("node.key"), in_pem);
  put(other, in_pem.substr(0, 60));
  EXPECT_EQ(answer(other), "key_damaged");
  put(other, in_pem, 0440);
  EXPECT_EQ(answer(other), "key_exposed");
}

}  // namespace
}  // namespace holdfast
