// Every file under cases/: good ones parse and survive a round trip, bad ones are refused with the
// message their .expect file names. judge_by_schema.py judges the same files by the published
// schema.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <gtest/gtest.h>

#include "policy/parse.hpp"
#include "policy/render.hpp"

namespace holdfast {
namespace {

namespace fs = std::filesystem;

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<fs::path> cases(const char* kind) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(fs::path(POLICY_CASES_DIR) / kind)) {
    if (entry.path().extension() != ".expect") out.push_back(entry.path());
  }
  std::ranges::sort(out);
  return out;
}

TEST(PolicyCases, GoodOnesParseAndSurviveARoundTrip) {
  std::vector<fs::path> paths = cases("good");
  ASSERT_GE(paths.size(), 14U);
  for (const fs::path& path : paths) {
    Result<Policy> policy = parse_policy(content(path), path.filename().string());
    ASSERT_TRUE(policy) << policy.error().text();
    for (JsonLayout layout : {JsonLayout::compact, JsonLayout::indented}) {
      Result<Policy> again = parse_policy(render_policy_json(*policy, layout), "rendered");
      ASSERT_TRUE(again) << path << ": " << again.error().text();
      EXPECT_EQ(*again, *policy) << path;
    }
  }
}

TEST(PolicyCases, BadOnesAreRefusedForTheExpectedReason) {
  constexpr std::string_view label = "message: ";
  std::vector<fs::path> paths = cases("bad");
  ASSERT_GE(paths.size(), 180U);
  for (const fs::path& path : paths) {
    std::string name = path.filename().string();
    std::string expected = content(fs::path(path).replace_extension(".expect"));
    ASSERT_TRUE(expected.starts_with(label)) << name;
    expected = expected.substr(label.size(), expected.find('\n') - label.size());

    Result<Policy> policy = parse_policy(content(path), name);
    ASSERT_FALSE(policy) << name << " was accepted";
    const Error& error = policy.error();
    EXPECT_EQ(error.kind, ErrorKind::invalid) << name;
    EXPECT_NE(error.message.find(expected), std::string::npos)
        << name << "\n  expected: " << expected << "\n  said:     " << error.message;
    // "file:line: what; how to mend it", each line of it, printable.
    std::istringstream lines(error.message);
    for (std::string line; std::getline(lines, line);) {
      EXPECT_TRUE(line.starts_with(name + ":")) << line;
      EXPECT_TRUE(line.size() > name.size() + 1 && line[name.size() + 1] >= '1') << line;
      EXPECT_NE(line.find("; "), std::string::npos) << line;
      EXPECT_TRUE(std::ranges::all_of(line, [](char c) { return c >= 0x20 && c < 0x7f; })) << line;
    }
  }
}

}  // namespace
}  // namespace holdfast
