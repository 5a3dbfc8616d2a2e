// The log: one line an event, never forged, never flooded. Lines are read back from the real
// stderr.
#include "userspace/base/log.hpp"

#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/mman.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/unique_fd.hpp"

namespace holdfast::log {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

// Runs `body` with file descriptor 2 pointing at a memory file, and answers what was written to it.
std::string stderr_of(const std::function<void()>& body) {
  const UniqueFd sink(::memfd_create("log", MFD_CLOEXEC));
  const UniqueFd saved(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
  ::dup2(sink.get(), STDERR_FILENO);
  body();
  ::dup2(saved.get(), STDERR_FILENO);

  std::string text(static_cast<size_t>(::lseek(sink.get(), 0, SEEK_END)), '\0');
  const ssize_t got = ::pread(sink.get(), text.data(), text.size(), 0);
  text.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return text;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// A log event's bucket is one second of boot time; starting at its beginning keeps a burst in one.
void wait_for_the_next_second() {
  const uint64_t next_ns = (boot_now_ns() / ns_per_s + 1) * ns_per_s;
  const timespec until{.tv_sec = static_cast<time_t>(next_ns / ns_per_s),
                       .tv_nsec = static_cast<long>(next_ns % ns_per_s)};
  while (::clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &until, nullptr) == EINTR) {
  }
}

class Log : public ::testing::Test {
 protected:
  void SetUp() override { configure(Format::text, Level::debug); }
  void TearDown() override { configure(Format::text, Level::info); }
};

TEST_F(Log, TextIsLevelEventAndFields) {
  const std::string text =
      stderr_of([] { info("lease_granted", {{"lease", "17"}, {"ttl", "60s"}, {"slots", 3}}); });
  EXPECT_THAT(lines_of(text), ElementsAre("info    lease_granted lease=17 ttl=60s slots=3"));
}

TEST_F(Log, JsonIsOneVersionedObjectALine) {
  configure(Format::json, Level::debug);
  const std::string text = stderr_of(
      [] { warning("port_vanished", {{"port", "web0"}, {"ifindex", 12}, {"ratio", 0.5}}); });
  ASSERT_EQ(lines_of(text).size(), 1U);
  const nlohmann::json line = nlohmann::json::parse(text);
  EXPECT_EQ(line["version"], 1);
  EXPECT_EQ(line["level"], "warning");
  EXPECT_EQ(line["priority"], 4);  // syslog's number
  EXPECT_EQ(line["event"], "port_vanished");
  EXPECT_EQ(line["port"], "web0");
  EXPECT_EQ(line["ifindex"], 12);
  EXPECT_EQ(line["ratio"], 0.5);
  EXPECT_THAT(line["time"].get<std::string>(), MatchesRegex("....-..-..T..:..:..\\....Z"));
}

TEST_F(Log, WhatIsBelowTheLevelIsNotWritten) {
  configure(Format::text, Level::notice);
  const std::string text = stderr_of([] {
    debug("quiet_debug");
    info("quiet_info");
    notice("loud_notice");
    error("loud_error");
  });
  EXPECT_THAT(lines_of(text), ElementsAre("notice  loud_notice", "error   loud_error"));
}

// What a peer sends may end up in a field. It must not be able to begin a line of its own, end a
// quoted value early, or pass for another field.
TEST_F(Log, TextValuesCannotForgeLinesOrFields) {
  struct Case {
    const char* name;
    const char* value;
    const char* line;
  };
  const Case cases[] = {
      {"a plain value is not quoted", "acme/shop/prod", "info    forge v=acme/shop/prod"},
      {"an empty value is visible", "", R"(info    forge v="")"},
      {"a blank", "a b=c", R"(info    forge v="a b=c")"},
      {"a newline", "x\ninfo    lease_granted",
       R"(info    forge v="x\u000ainfo    lease_granted")"},
      {"a carriage return", "x\ry", R"(info    forge v="x\u000dy")"},
      {"a quote", R"(x" y="z)", R"(info    forge v="x\" y=\"z")"},
      {"a backslash before a quote", R"(x\" y)", R"(info    forge v="x\\\" y")"},
      {"a terminal escape", "\x1b[31mred", R"(info    forge v="\u001b[31mred")"},
      {"a tab", "a\tb", R"(info    forge v="a\u0009b")"},
  };
  for (const Case& c : cases) {
    const std::string text = stderr_of([&] { info("forge", {{"v", c.value}}); });
    EXPECT_THAT(lines_of(text), ElementsAre(c.line)) << c.name;
  }
}

TEST_F(Log, JsonValuesCannotForgeLinesOrFields) {
  configure(Format::json, Level::debug);
  const std::string hostile = "x\",\"level\":\"error\"}\n{\"event\":\"lease_granted\\";
  const std::string text = stderr_of([&] { info("forge_json", {{"v", hostile}}); });
  ASSERT_EQ(lines_of(text).size(), 1U);
  const nlohmann::json line = nlohmann::json::parse(text);
  EXPECT_EQ(line["v"], hostile);
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["event"], "forge_json");
}

TEST_F(Log, AFloodOfOneEventIsCutCountedAndHidesNoOther) {
  wait_for_the_next_second();
  const std::string flood = stderr_of([] {
    for (int i = 0; i < 1'000; ++i) info("flood", {{"i", i}});
    info("other");
  });
  const std::vector<std::string> lines = lines_of(flood);
  ASSERT_LT(lines.size(), 100U);
  ASSERT_GE(lines.size(), 2U);
  EXPECT_EQ(lines.back(), "info    other");
  EXPECT_EQ(lines.front(), "info    flood i=0");

  // The next line of the event says how many were left out; the one after it no longer does.
  wait_for_the_next_second();
  const std::string after = stderr_of([] {
    info("flood", {{"i", "last"}});
    info("flood", {{"i", "later"}});
  });
  const size_t left_out = 1'000 - (lines.size() - 1);
  EXPECT_THAT(lines_of(after),
              ElementsAre(fmt::format("info    flood i=last suppressed={}", left_out),
                          "info    flood i=later"));
}

TEST_F(Log, AClosedStderrIsNoError) {
  const UniqueFd saved(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
  ::close(STDERR_FILENO);
  info("into_the_void");
  ::dup2(saved.get(), STDERR_FILENO);
}

// The journal's prefix depends on the environment at the first line, so it needs a process of its
// own.
TEST(LogDeathTest, UnderJournaldLinesCarryTheirPriority) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ::setenv("JOURNAL_STREAM", "1:1", 1);
        error("boom", {{"port", "web0"}});
        std::_Exit(0);
      },
      ::testing::ExitedWithCode(0), "<3>error   boom port=web0");
}

}  // namespace
}  // namespace holdfast::log
